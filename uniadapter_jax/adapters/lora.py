"""LoRA (Hu et al., ICLR 2022): a low-rank update beside named linear layers of both towers.

    y = x W + b + (alpha / rank) * (drop(x) A) B        A: width_in x rank, B: rank x width_out

B starts at zero, so a freshly attached model computes what the frozen one does. A is uniform in
+-1/sqrt(width_in), as in the authors' code.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uniadapter_jax.adapters.base import AdapterParam, Method, fill_place
from uniadapter_jax.adapters.targets import linear_layers, linear_layers_named
from uniadapter_jax.backbones import functions, scan
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import uniform
from uniadapter_jax.common.ranges import BELOW_ONE, POSITIVE, at_least
from uniadapter_jax.common.types import Array, Float


class LowRank(nnx.Module):
    """The residual branch beside one (stack of) linear layer(s)."""

    def __init__(
        self,
        path: str,
        kernel: tuple[int, ...],
        rank: int,
        alpha: float,
        dropout: float,
        rng: np.random.Generator | None,
    ):
        *stack, width_in, width_out = kernel
        bound = width_in**-0.5
        self.a_kernel = AdapterParam(uniform(rng, bound, *stack, width_in, rank))
        self.b_kernel = AdapterParam(jnp.zeros((*stack, rank, width_out), jnp.float32))
        self.scale = alpha / rank
        self.dropout = dropout
        self.path = path  # each layer drops other entries

    def __call__(
        self, y: Float[Array, "... o"], x: Float[Array, "... i"], layer: scan.LayerInputs
    ) -> Float[Array, "... o"]:
        x = functions.dropout(x, self.dropout, layer.key_of(self.path))
        low = functions.matmul(x, self.a_kernel[...] * self.scale)
        return y + functions.matmul(low, self.b_kernel[...])

    def update(self) -> Float[Array, "*z i o"]:
        """What the branch adds to the kernel beside it."""
        return self.scale * jnp.einsum("...ir,...ro->...io", self.a_kernel[...], self.b_kernel[...])


def attach(backbone: nnx.Module, options: Any, rng: np.random.Generator | None) -> None:
    """Puts a low-rank branch beside each linear layer that `options.targets` names.

    A target is the end of a path in whole segments: `q`, `attn.q`, `vision.blocks.mlp.fc1`.
    """
    if options.rank < 1:
        raise UserError(f"method.rank={options.rank}: at least 1")
    for target in options.targets:
        for path, linear in linear_layers_named(backbone, target, "method.targets"):
            kernel = linear.kernel[...].shape
            branch = LowRank(path, kernel, options.rank, options.alpha, options.dropout, rng)
            fill_place(linear, "delta", branch)


def merge(backbone: nnx.Module) -> None:
    """Adds every branch to the kernel beside it: W + (alpha / rank) A B, summed in float64."""
    for _, linear in linear_layers(backbone):
        branch = linear.delta
        if branch is None:
            continue
        a, b, kernel = (
            np.asarray(jax.device_get(param[...]), np.float64)
            for param in (branch.a_kernel, branch.b_kernel, linear.kernel)
        )
        merged = kernel + branch.scale * np.einsum("...ir,...ro->...io", a, b)
        linear.kernel[...] = jnp.asarray(merged.astype(np.float32))
        linear.delta = None


METHOD = Method(
    name="lora",
    attach=attach,
    merge=merge,
    options={"rank": 8, "alpha": 8.0, "targets": ("attn.q", "attn.v"), "dropout": 0.0},
    ranges={"rank": at_least(1), "alpha": POSITIVE, "dropout": BELOW_ONE},
    layered=True,
)
