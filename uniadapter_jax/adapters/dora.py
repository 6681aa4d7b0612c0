"""DoRA (Liu et al., ICML 2024): LoRA whose columns have a length of their own, as PEFT has it.

    y = x W' + b,    W' = m * V / |V|,    V = W + (alpha / rank) A B

with one norm and one m for each output; m starts at the norms of W. The norm counts as a constant
in the gradient (section 4.3 of the paper). As in PEFT, dropout acts on all that is added to the
frozen layer: y = x W + b + (m / |V| - 1) drop(x) W + m / |V| (alpha / rank) drop(x) A B.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uniadapter_jax.adapters import lora
from uniadapter_jax.adapters.base import AdapterParam, fill_place
from uniadapter_jax.adapters.targets import linear_layers, linear_layers_named
from uniadapter_jax.backbones import functions, scan
from uniadapter_jax.backbones.linear import Linear
from uniadapter_jax.common.types import Array, Float


def _lengths(kernel: Float[Array, "*z i o"]) -> Float[Array, "*z o"]:
    return jnp.sqrt((kernel * kernel).sum(-2))


class Reweighted(nnx.Module):
    """W' in place of the W of one (stack of) linear layer(s)."""

    def __init__(self, path: str, linear: Linear, options: Any, rng: np.random.Generator | None):
        kernel = linear.kernel[...].astype(jnp.float32)
        self.low = lora.LowRank(path, kernel.shape, options.rank, options.alpha, 0.0, rng)
        self.magnitude = AdapterParam(_lengths(kernel))
        self.dropout, self.path = options.dropout, path

    def reweighted(self, kernel: Float[Array, "*z i o"]) -> tuple[Array, Array]:
        """V, and m / |V|."""
        v = kernel.astype(jnp.float32) + self.low.update()
        return v, self.magnitude[...] / jax.lax.stop_gradient(_lengths(v))

    def __call__(
        self,
        y: Float[Array, "... o"],
        x: Float[Array, "... i"],
        layer: scan.LayerInputs,
        linear: Linear,
    ) -> Float[Array, "... o"]:
        key, kernel, frozen = layer.key_of(self.path), linear.kernel[...], y
        factor = functions.along_last(self.reweighted(kernel)[1].astype(y.dtype), y)
        if key is not None and self.dropout:
            x = functions.dropout(x, self.dropout, key)
            frozen = functions.matmul(x, kernel)
        elif linear.bias is not None:
            frozen = y - functions.along_last(linear.bias[...].astype(y.dtype), y)
        added = self.low(jnp.zeros_like(y), x, scan.NO_INPUTS)
        return y + (factor - 1) * frozen + factor * added


def attach(backbone: nnx.Module, options: Any, rng: np.random.Generator | None) -> None:
    """Reweights each linear layer that `options.targets` names, as `lora` reads them."""
    for target in options.targets:
        for path, linear in linear_layers_named(backbone, target, "method.targets"):
            fill_place(linear, "reweighted", Reweighted(path, linear, options, rng))


def merge(backbone: nnx.Module) -> None:
    """Puts W' in the place of W."""
    for _, linear in linear_layers(backbone):
        if linear.reweighted is not None:
            v, factor = linear.reweighted.reweighted(linear.kernel[...])
            linear.kernel[...] = v * factor[..., None, :]
            linear.reweighted = None


METHOD = dataclasses.replace(lora.METHOD, name="dora", attach=attach, merge=merge)
