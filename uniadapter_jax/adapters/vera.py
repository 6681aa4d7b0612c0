"""VeRA (Kopiczko et al., ICLR 2024): LoRA by two frozen random matrices that all layers share.

    y = x W + b + beta * ((x A * delta) B)        A: widest in x rank, B: rank x widest out

As in PEFT. Only beta (from zero) and delta (from `start`) train; a layer uses the first rows of A
and columns of B, which are drawn from `projection_seed`, uniform in +-sqrt(6 / fan in), in no file.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from uniadapter_jax.adapters.base import AdapterParam, Method, fill_place
from uniadapter_jax.adapters.bottleneck import constant
from uniadapter_jax.adapters.targets import linear_layers, linear_layers_named, parameters
from uniadapter_jax.backbones import functions, scan
from uniadapter_jax.common.randomness import generator, uniform
from uniadapter_jax.common.ranges import POSITIVE, at_least


class Matrices(nnx.Module):
    """A and B, frozen."""

    def __init__(self, seed: int, width_in: int, rank: int, width_out: int):
        rng = generator(seed, "vera")
        self.a_kernel = AdapterParam(uniform(rng, (6 / width_in) ** 0.5, 1, width_in, rank))
        self.b_kernel = AdapterParam(uniform(rng, (6 / rank) ** 0.5, 1, rank, width_out))

    def layer_slices(self, tower: str, count: int) -> tuple[Any, ...]:
        """Both for every layer."""
        return tuple(jnp.repeat(x[...], count, axis=0) for x in (self.a_kernel, self.b_kernel))


class Vectors(nnx.Module):
    """beta and delta of one stack of linear layers."""

    def __init__(self, kernel: tuple[int, ...], rank: int, start: float):
        self.beta = constant(0.0, *kernel[:-2], kernel[-1])
        self.delta = constant(start, *kernel[:-2], rank)

    def __call__(self, y: Any, x: Any, layer: scan.LayerInputs) -> Any:
        a, b = layer.shared  # type: ignore[misc]
        low = functions.matmul(x, a[: x.shape[-1]] * self.delta[...][None])
        return y + functions.matmul(low, b[:, : y.shape[-1]] * self.beta[...][None])


def attach(backbone: Any, options: Any, rng: np.random.Generator | None) -> None:
    """Puts vectors beside each linear layer of the towers that `options.targets` names."""
    widths, rank = [(1, 1)], options.rank
    for target in options.targets:
        for path, linear in linear_layers_named(backbone, target, "method.targets"):
            if ".blocks." in path:
                fill_place(linear, "delta", Vectors(linear.kernel.shape, rank, options.start))
                widths.append((linear.kernel.shape[-2], linear.kernel.shape[-1]))
    width_in, width_out = (max(sizes) for sizes in zip(*widths, strict=True))
    fill_place(backbone, "adapters", Matrices(options.projection_seed, width_in, rank, width_out))


def merge(backbone: Any) -> None:
    """Adds A and B, scaled by the vectors, to every kernel."""
    a, b = backbone.adapters.layer_slices("", 1)
    for _, linear in linear_layers(backbone):
        if linear.delta is not None:
            own, (_, width_in, width_out) = linear.delta, linear.kernel.shape
            low = a[:, :width_in] * own.delta[...][:, None]
            linear.kernel[...] += low @ (b[..., :width_out] * own.beta[...][:, None])
            linear.delta = None
    backbone.adapters = None


METHOD = Method(
    name="vera",
    attach=attach,
    merge=merge,
    options={"rank": 256, "targets": ("attn.q", "attn.v"), "start": 0.1, "projection_seed": 0},
    ranges={"rank": at_least(1), "start": POSITIVE, "projection_seed": at_least(0)},
    trainable=parameters(r".*\.delta\.(beta|delta)"),
    layered=True,
)
