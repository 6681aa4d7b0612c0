"""MaPLe (Khattak et al., CVPR 2023): prompts of the texts, and vision's made of them.

    text layer i        SOS P_i words EOS               i < depth
    vision layer i      CLS patches (P_i W_i + w_i)

The first layer's join the rows ahead of positions (text) and of ln_pre (vision); a layer below
`depth` puts its own in their place, and the layers above carry the rows on. P starts normal with a
deviation of .02, W_i and w_i uniform in +-1/sqrt(width), and as in the authors' code those of all
layers but the first start as copies of one. The shallower tower bounds `depth`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from uniadapter_jax.adapters.base import AdapterParam, Method, fill_place
from uniadapter_jax.adapters.bottleneck import random_normal
from uniadapter_jax.adapters.rows import FirstRows, NewRows, Rows, first_word
from uniadapter_jax.common.randomness import uniform
from uniadapter_jax.common.ranges import at_least
from uniadapter_jax.common.types import Array


def _one_and_copies(
    rng: np.random.Generator | None, bound: float, depth: int, *shape: int
) -> AdapterParam:
    first, other = uniform(rng, bound, 1, *shape), uniform(rng, bound, 1, *shape)
    return AdapterParam(jnp.concatenate([first] + [other] * (depth - 1)))


class Prompts(nnx.Module):
    """P, and what makes vision's prompts of it."""

    def __init__(
        self, depth: int, count: int, text: int, vision: int, rng: np.random.Generator | None
    ):
        self.tokens = random_normal(rng, 0.02, depth, count, text)
        self.to_vision = _one_and_copies(rng, text**-0.5, depth, text, vision)
        self.to_vision_shift = _one_and_copies(rng, text**-0.5, depth, vision)
        self.depth = depth

    def layer_slices(self, tower: str, count: int) -> dict[str, Array]:
        """Each layer's tokens, zeros where it has none, and whether it puts them in."""
        tokens, layers = self.tokens[...], jnp.arange(count)
        if tower == "vision":
            tokens = jnp.einsum("znt,ztv->znv", tokens, self.to_vision[...])
            tokens = tokens + self.to_vision_shift[...][:, None]
        tokens = jnp.pad(tokens, ((0, count - self.depth), (0, 0), (0, 0)))
        return {"tokens": tokens, "new": (layers > 0) & (layers < self.depth)}


def attach(backbone: Any, options: Any, rng: np.random.Generator | None) -> None:
    """Puts prompts into both towers."""
    ahead = first_word(backbone)
    vision, text = backbone.towers()
    depth = min(options.depth, vision.layers, text.layers)
    prompts = Prompts(depth, options.prompts, text.width, vision.width, rng)
    fill_place(backbone, "adapters", prompts)
    for tower, own in ((vision, None), (text, ahead)):
        rows = Rows(options.prompts, own)
        fill_place(tower.owner, "before", FirstRows(rows))
        fill_place(tower.blocks, "before", NewRows(rows))


METHOD = Method(
    name="maple",
    attach=attach,
    options={"prompts": 2, "depth": 9},
    ranges={"prompts": at_least(1), "depth": at_least(1)},
)
