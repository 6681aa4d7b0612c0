"""IA3 (Liu et al., NeurIPS 2022): keys, values and the MLP's hidden channels are scaled.

    k = l_k * (x W_k + b_k),    v = l_v * (x W_v + b_v),    mlp(x) = W_2 (l_ff * act(W_1 x))

in every attention and MLP of every tower; all l start at one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx

from uniadapter_jax.adapters.base import Method, fill_place
from uniadapter_jax.adapters.bottleneck import constant
from uniadapter_jax.adapters.targets import linear_layers
from uniadapter_jax.backbones import functions, scan
from uniadapter_jax.common.types import Array, Float

AFTER, BEFORE = ("k", "v"), ("fc2",)  # linear layers whose output, or input, is scaled


class Scale(nnx.Module):
    """y * l, for every layer of a stack."""

    def __init__(self, *shape: int):
        self.scale = constant(1.0, *shape)

    def __call__(
        self, y: Float[Array, "... d"], x: Float[Array, "... i"], layer: scan.LayerInputs
    ) -> Float[Array, "... d"]:
        return y * functions.along_last(self.scale[...].astype(y.dtype), y)


def attach(backbone: nnx.Module, options: Any, rng: np.random.Generator | None) -> None:
    """Puts a scale after keys and values, and before the second layer of every MLP."""
    for path, linear in linear_layers(backbone):
        *stack, width_in, width_out = linear.kernel[...].shape
        name = path.rpartition(".")[2]
        if name in AFTER:
            fill_place(linear, "delta", Scale(*stack, width_out))
        elif name in BEFORE:
            fill_place(linear, "before", Scale(*stack, width_in))


def merge(backbone: nnx.Module) -> None:
    """Works the scales into the weights beside them."""
    for _, linear in linear_layers(backbone):
        if linear.delta is not None:
            scale = linear.delta.scale[...]
            linear.kernel[...] = linear.kernel[...] * scale[..., None, :]
            if linear.bias is not None:
                linear.bias[...] = linear.bias[...] * scale
        if linear.before is not None:
            linear.kernel[...] = linear.kernel[...] * linear.before.scale[...][..., None]
        linear.delta = linear.before = None


METHOD = Method(name="ia3", attach=attach, merge=merge, layered=True)
