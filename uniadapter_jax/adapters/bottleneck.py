"""Parameters and modules that methods are made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uniadapter_jax.adapters.base import AdapterParam
from uniadapter_jax.backbones import functions, scan
from uniadapter_jax.backbones.layers import Tower
from uniadapter_jax.backbones.linear import Linear
from uniadapter_jax.common.randomness import normal, uniform
from uniadapter_jax.common.types import Array, Float

ACTIVATIONS = {**functions.ACTIVATIONS, "relu": jax.nn.relu}


def constant(value: float, *shape: int) -> AdapterParam:
    """A parameter that starts with one value everywhere."""
    return AdapterParam(jnp.full(shape, value, jnp.float32))


def random_normal(rng: np.random.Generator | None, std: float, *shape: int) -> AdapterParam:
    """A parameter that starts normal."""
    return AdapterParam(normal(rng, std, *shape))


def kaiming(rng: np.random.Generator | None, *shape: int, fan_in: int = 0) -> AdapterParam:
    """A kernel "... i o" as PyTorch's linear layers start: uniform in +-1/sqrt(fan_in).

    fan_in: by default the kernel's own i.
    """
    return AdapterParam(uniform(rng, (fan_in or shape[-2]) ** -0.5, *shape))


def linear(
    x: Float[Array, "... i"], kernel: Float[Array, "i o"], bias: Float[Array, " o"]
) -> Float[Array, "... o"]:
    """x @ kernel + bias in the dtype of `x`."""
    y = functions.matmul(x, kernel)
    return y + functions.along_last(bias.astype(y.dtype), y)


def train_linear(layer: Linear) -> None:
    """Makes a linear layer of the backbone one that trains with the method."""
    layer.kernel = AdapterParam(layer.kernel[...])
    if layer.bias is not None:
        layer.bias = AdapterParam(layer.bias[...])


class Bottleneck(nnx.Module):
    """y + scale * (U act(D s + b_d) + b_u), for every layer of a tower; U starts at zero.

    Args:
      parallel: whether s is what came into the sub-layer (x), not what came out (y).
      name: of the place, for dropout.
    """

    def __init__(
        self,
        tower: Tower,
        bottleneck: int,
        *,
        name: str,
        rng: np.random.Generator | None,
        activation: str = "relu",
        parallel: bool = False,
        scale: float = 1.0,
        dropout: float = 0.0,
    ):
        count, width = tower.layers, tower.width
        self.down_kernel = kaiming(rng, count, width, bottleneck)
        self.down_bias = constant(0.0, count, bottleneck)
        self.up_kernel = constant(0.0, count, bottleneck, width)
        self.up_bias = constant(0.0, count, width)
        self.activation, self.parallel, self.scale = activation, parallel, scale
        self.dropout, self.name = dropout, name

    def __call__(
        self, y: Float[Array, "b s d"], x: Float[Array, "b s d"], layer: scan.LayerInputs
    ) -> Float[Array, "b s d"]:
        down = linear(x if self.parallel else y, self.down_kernel[...], self.down_bias[...])
        down = ACTIVATIONS[self.activation](down)
        down = functions.dropout(down, self.dropout, layer.key_of(self.name))
        up = linear(down, self.up_kernel[...] * self.scale, self.up_bias[...] * self.scale)
        return y + up
