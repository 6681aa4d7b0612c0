"""VPT-deep (Jia et al., ECCV 2022): tokens of its own for each layer of the vision tower.

The tokens stand beside the patches as a layer attends; their own rows are thrown away after the
layer, and the next one has new ones. So they need no row at all: they stand ahead of the keys and
values only (`Block.prompts`), after the layer's LayerNorm. They start uniform in +-a, a^2 =
6 / (3 patch^2 + width).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx

from uniadapter_jax.adapters.base import AdapterParam, Method, fill_place
from uniadapter_jax.backbones import scan
from uniadapter_jax.common.randomness import uniform
from uniadapter_jax.common.ranges import at_least
from uniadapter_jax.common.types import Array, Float


class Prompts(nnx.Module):
    """p tokens for each of z layers."""

    def __init__(
        self, layers: int, count: int, width: int, bound: float, rng: np.random.Generator | None
    ):
        self.tokens = AdapterParam(uniform(rng, bound, layers, count, width))

    def __call__(self, layer: scan.LayerInputs) -> Float[Array, "p d"]:
        return self.tokens[...]


def attach(backbone: Any, options: Any, rng: np.random.Generator | None) -> None:
    """Puts prompts into every layer of the vision tower."""
    tower = backbone.towers()[0]
    bound = (6.0 / (3 * backbone.config.patch_size**2 + tower.width)) ** 0.5
    prompts = Prompts(tower.layers, options.prompts, tower.width, bound, rng)
    fill_place(tower.blocks, "prompts", prompts)


METHOD = Method(
    name="vpt_deep",
    attach=attach,
    options={"prompts": 5},
    ranges={"prompts": at_least(1)},
    layered=True,
)
