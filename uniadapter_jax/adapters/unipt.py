"""UniPT (Diao et al., CVPR 2024): a network beside each tower reads the states of all its layers.

    t_i = relu(h_i) D_i + d_i                   h_0 ahead of the layers, h_i behind layer i
    a   = relu(f) D_a + d_a                     f: the frozen features, not normalised
    m_i = (relu(a t_i^T) / sum) t_i + t_i[at]   at: the row that f was read from
    f'  = f + relu(sum_i softmax_i(g (a * mean(t_i)) + c) m_i) U + u

without a gradient into the backbone. All start uniform in +-1/sqrt(fan in), as PyTorch's linear
layers: not at the frozen model. The features' width over `factor` is that of t. As in the authors'
code; theirs takes a word of id 0, CLIP's "!", for padding, here padding stands behind the EOS. Of
SigLIP, whose pictures have no such row and whose texts are read with their padding, it is the mean
of the patches, and all rows are seen.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uniadapter_jax.adapters.base import AdapterParam, Method, fill_place
from uniadapter_jax.adapters.bottleneck import kaiming, linear
from uniadapter_jax.backbones.layers import States, Tower
from uniadapter_jax.common.randomness import uniform
from uniadapter_jax.common.ranges import at_least
from uniadapter_jax.common.types import Array, Float

EPSILON = 1e-6  # the least sum of attention's weights


class SideNetwork(nnx.Module):
    """f' of one tower."""

    def __init__(self, tower: Tower, embed: int, narrow: int, rng: np.random.Generator | None):
        def bias(fan_in: int, *shape: int) -> AdapterParam:
            return AdapterParam(uniform(rng, fan_in**-0.5, *shape))

        states = tower.layers + 1
        self.down_kernel = kaiming(rng, states, tower.width, narrow)
        self.down_bias = bias(tower.width, states, narrow)
        self.anchor_kernel = kaiming(rng, embed, narrow)
        self.anchor_bias = bias(embed, narrow)
        self.gate_kernel = kaiming(rng, narrow, 1)
        self.gate_bias = bias(narrow, 1)
        self.up_kernel = kaiming(rng, narrow, embed)
        self.up_bias = bias(narrow, embed)

    def __call__(self, features: Float[Array, "b c"], states: States) -> Float[Array, "b c"]:
        features = features.astype(jnp.float32)
        low = jax.vmap(lambda h, kernel, bias: linear(jax.nn.relu(h), kernel, bias))(
            states.layers, self.down_kernel[...], self.down_bias[...]
        )
        low = low.astype(jnp.float32)
        anchor = linear(jax.nn.relu(features), self.anchor_kernel[...], self.anchor_bias[...])
        seen = jnp.ones(low.shape[1:3]) if states.mask is None else states.mask.astype(jnp.float32)
        weights = jax.nn.relu(jnp.einsum("bm,zbsm->zbs", anchor, low)) * seen[None]
        weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), EPSILON)
        merged = jnp.einsum("zbs,zbsm->zbm", weights, low) + jax.vmap(states.read)(low)
        mean = jnp.einsum("bs,zbsm->zbm", seen / seen.sum(-1, keepdims=True), low)
        gates = linear(anchor[None] * mean, self.gate_kernel[...], self.gate_bias[...])
        total = (merged * jax.nn.softmax(gates, axis=0)).sum(0)
        return features + linear(jax.nn.relu(total), self.up_kernel[...], self.up_bias[...])


def attach(backbone: Any, options: Any, rng: np.random.Generator | None) -> None:
    """Puts a network beside each tower, the texts' first."""
    embed = backbone.config.embed
    for tower in reversed(backbone.towers()):
        network = SideNetwork(tower, embed, max(embed // options.factor, 1), rng)
        fill_place(tower.owner, "side", network)


METHOD = Method(
    name="unipt",
    attach=attach,
    options={"factor": 1},
    ranges={"factor": at_least(1)},
    behind_layers=True,
)
