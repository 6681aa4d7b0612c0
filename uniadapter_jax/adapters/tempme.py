"""TempMe (Shen et al., ICLR 2025): upper layers of the vision tower join frames of a clip.

LoRA as in `lora_shared`, and a learnt position for every group of frames ahead of a join, from
zero. Layers merge `merged` tokens of a frame (ToMe) up to the first of `joins`, which are
"LAYER:FRAMES", layers counted from the top: "2:3" has the last but one join 3 groups. There the
share `across` of the tokens merges, and from there on `within` behind attention. The defaults are
the paper's for 12 frames: in layers 8, 9 and 10 of 12 they become 6, 3 and 1. Layers that a tower,
or what of it is above `from_layer`, does not have join in its first, all together.

`frames` is the most that a clip has. Of a clip with fewer the last are missing: padding, which
nothing sees (in the authors' code all do), and a picture is a clip of one.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from flax import nnx

from uniadapter_jax.adapters import lora_shared
from uniadapter_jax.adapters.base import Method, fill_place
from uniadapter_jax.adapters.bottleneck import constant
from uniadapter_jax.backbones.joining import Schedule
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.ranges import BELOW_ONE, at_least

_PAIR = re.compile("([1-9][0-9]{0,3}):([1-9][0-9]{0,3})")


class Joins(nnx.Module):
    """What the layers of the vision tower do with frames."""

    def __init__(self, schedule: Schedule, width: int):
        self.schedule = nnx.static(schedule)
        self.positions = constant(0.0, schedule.positions, width)


def joins_of(options: Any, layers: int) -> tuple[tuple[int, int], ...]:
    """(layer, groups that it joins) of a tower of so many layers, from the bottom up."""
    found: dict[int, int] = {}
    for text in options.joins:
        pair = _PAIR.fullmatch(text)
        if pair is None:
            raise UserError(f"method.joins: {text!r:.40} is not LAYER:FRAMES, such as '2:3'")
        layer = max(layers - int(pair[1]), 0)
        found[layer] = found.get(layer, 1) * int(pair[2])
    together = math.prod(found.values())
    if together < 2 or options.frames % together:
        raise UserError(
            f"method.frames={options.frames}: method.joins={tuple(options.joins)} joins {together} "
            "frames; choose joins of at least 2, and a multiple of that"
        )
    return tuple(sorted((layer, count) for layer, count in found.items() if count > 1))


def attach(backbone: Any, options: Any, rng: np.random.Generator | None) -> None:
    """Joins in the vision tower, branches beside q, k and v of both."""
    (vision,) = (tower for tower in backbone.towers() if tower.name == "vision")
    shares = options.merged, options.across, options.within
    schedule = Schedule(options.frames, joins_of(options, vision.layers), *shares)
    fill_place(vision.owner, "joins", Joins(schedule, vision.width))
    lora_shared.attach(backbone, options, rng)


_OWN = {"frames": 12, "joins": ("4:2", "3:2", "2:3"), "merged": 2, "across": 0.3, "within": 0.1}
_SHARES = {"across": BELOW_ONE, "within": BELOW_ONE}
METHOD = Method(
    name="tempme",
    attach=attach,
    options={**lora_shared.METHOD.options, **_OWN},
    ranges={"rank": at_least(1), "frames": at_least(2), "merged": at_least(0), **_SHARES},
    layered=True,
    joins_frames=True,
)
