"""VL-Prompt (VoP's base, Huang et al., CVPR 2023): tokens of its own for each layer of both towers.

    vision     CLS patches t_1 ... t_p                  ahead of ln_pre in the first layer
    text       SOS a_1 ... a_n words b_1 ... b_m last   ahead of positions in the first layer

Behind a layer their rows are thrown away, and the next layer has new ones; all start normal with a
deviation of .02. As in the authors' code (ModelScope's): the b stand ahead of the last row, padding
or not, and a text is read n + m rows behind its EOS although only n rows stand ahead of that, so
mostly at padding; the mask is causal, so it sees the b only if the text nearly fills its row.
Theirs have vision's tokens behind CLS, which is the same: they have no position.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from uniadapter_jax.adapters.base import Method, fill_place
from uniadapter_jax.adapters.bottleneck import random_normal
from uniadapter_jax.adapters.rows import FirstRows, NewRows, Rows, first_word
from uniadapter_jax.common.ranges import at_least
from uniadapter_jax.common.types import Array


class Prompts(nnx.Module):
    """The tokens of every layer of both towers."""

    def __init__(self, towers: Any, counts: dict[str, int], rng: np.random.Generator | None):
        vision, text = towers
        self.vision = random_normal(rng, 0.02, vision.layers, counts["vision"], vision.width)
        self.text = random_normal(rng, 0.02, text.layers, counts["text"], text.width)

    def layer_slices(self, tower: str, count: int) -> dict[str, Array]:
        """Each layer's tokens; the first layer's join its rows ahead of the layers."""
        return {"tokens": getattr(self, tower)[...], "new": jnp.arange(count) > 0}


def attach(backbone: Any, options: Any, rng: np.random.Generator | None) -> None:
    """Puts tokens into both towers."""
    ahead, towers = first_word(backbone), backbone.towers()
    groups = {
        "vision": (Rows(options.prompts),),
        "text": (Rows(options.prefix, ahead), Rows(options.suffix, behind=1)),
    }
    counts = {name: sum(rows.size for rows in of_tower) for name, of_tower in groups.items()}
    fill_place(backbone, "adapters", Prompts(towers, counts, rng))
    for tower in towers:
        fill_place(tower.owner, "before", FirstRows(*groups[tower.name]))
        fill_place(tower.blocks, "before", NewRows(*groups[tower.name]))


METHOD = Method(
    name="vl_prompt",
    attach=attach,
    options={"prompts": 8, "prefix": 4, "suffix": 4},
    reads_padding=True,
    ranges={"prompts": at_least(1), "prefix": at_least(1), "suffix": at_least(0)},
)
