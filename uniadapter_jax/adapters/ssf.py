"""SSF (Lian et al., NeurIPS 2022): channels are scaled and shifted after every operation.

    y = gamma * f(x) + beta

where f is the patch embedding, a LayerNorm, or a linear layer of attention or an MLP, of every
tower. gamma starts normal around one, beta around zero, both with a deviation of .02, so the start
is near the frozen model, not at it. Heads and projections have none, as in the authors' code, whose
head trains. A shift of patches that have no bias is merged into their positions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx

from uniadapter_jax.adapters.base import AdapterParam, Method, fill_place
from uniadapter_jax.adapters.bottleneck import random_normal
from uniadapter_jax.adapters.targets import modules_of
from uniadapter_jax.backbones import functions, scan
from uniadapter_jax.backbones.linear import LayerNorm, Linear
from uniadapter_jax.common.types import Array, Float

LINEAR = ("patch_embedding", "q", "k", "v", "out", "fc1", "fc2")
STD = 0.02


class ScaleShift(nnx.Module):
    """gamma * y + beta, for every layer of a stack."""

    def __init__(self, rng: np.random.Generator | None, *shape: int):
        self.scale = AdapterParam(random_normal(rng, STD, *shape)[...] + 1.0)
        self.shift = random_normal(rng, STD, *shape)

    def __call__(
        self, y: Float[Array, "... d"], x: Float[Array, "... i"], layer: scan.LayerInputs
    ) -> Float[Array, "... d"]:
        scale, shift = (
            functions.along_last(p[...].astype(y.dtype), y) for p in (self.scale, self.shift)
        )
        return y * scale + shift


def _adapted(backbone: Any) -> list[tuple[Any, Any, tuple[int, ...]]]:
    """Layers, the weights that scale their outputs, and the shape of the outputs' channels."""
    linear = [m for path, m in modules_of(backbone, Linear) if path.rpartition(".")[2] in LINEAR]
    norms = [m for path, m in modules_of(backbone, LayerNorm) if "head" not in path]
    kernels = [(m, m.kernel, (*m.kernel.shape[:-2], m.kernel.shape[-1])) for m in linear]
    return kernels + [(m, m.scale, m.scale.shape) for m in norms]


def attach(backbone: Any, options: Any, rng: np.random.Generator | None) -> None:
    """Puts a scale and a shift after every layer that the formula names."""
    for layer, _, channels in _adapted(backbone):
        fill_place(layer, "delta", ScaleShift(rng, *channels))


def merge(backbone: Any) -> None:
    """Works scales and shifts into weights and biases."""
    for layer, weight, (*stack, width) in _adapted(backbone):
        scale, shift = layer.delta.scale[...], layer.delta.shift[...]
        inputs = (1,) * (weight.ndim - scale.ndim)
        weight[...] = weight[...] * scale.reshape(*stack, *inputs, width)
        if layer.bias is not None:
            layer.bias[...] = layer.bias[...] * scale + shift
        else:
            positions = backbone.vision.position_embedding
            first = positions.shape[0] - backbone.config.patches  # behind the class token
            positions[...] = positions[...].at[first:].add(shift[None])
        layer.delta = None


METHOD = Method(name="ssf", attach=attach, merge=merge, layered=True)
