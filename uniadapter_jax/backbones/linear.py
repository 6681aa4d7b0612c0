"""Linear layers and LayerNorm, with the places of a linear layer.

A *place* is an attribute that is `None` in the bare backbone. A method puts a module there, which
is called as `module(y, x, layer)`: y is what is there, x is what it was made of, `layer` a
`scan.LayerInputs`. It returns what takes the place of y. `layers` has the other places.

    Linear.before         x = before(x, x), before the product
    Linear.delta          y = delta(x @ kernel + bias, x)
    Linear.reweighted     y = reweighted(x @ kernel + bias, x, layer, the linear layer)
    LayerNorm.delta       y = delta(ln(x), x)
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from uniadapter_jax.backbones import functions, scan
from uniadapter_jax.common.randomness import normal
from uniadapter_jax.common.types import Array, Float

# Where initial weights come from; None makes zeros, for weights that a file will fill.
Rng = np.random.Generator | None


def at_place(
    place: Any, y: Float[Array, "... o"], x: Float[Array, "... i"], layer: scan.LayerInputs
) -> Float[Array, "... o"]:
    """y, or what the module at a place makes of it; x is what y was made of."""
    return y if place is None else place(y, x, layer)


def random(rng: Rng, std: float, *shape: int) -> nnx.Param:
    """A parameter of normal random numbers."""
    return nnx.Param(normal(rng, std, *shape))


class Linear(nnx.Module):
    """y = x @ kernel + bias, and a place on either side: `before` and `delta`.

    A method that needs the weights as well as what they make uses `reweighted` in place of `delta`.

    `stack` is the leading shape of the parameters: () or (layers,).
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        *,
        stack: tuple[int, ...] = (),
        use_bias: bool = True,
        std: float,
        rng: Rng,
    ):
        self.kernel = random(rng, std, *stack, width_in, width_out)
        self.bias = nnx.data(nnx.Param(jnp.zeros((*stack, width_out))) if use_bias else None)
        self.before = nnx.data(None)
        self.delta = nnx.data(None)
        self.reweighted = nnx.data(None)

    def __call__(
        self, x: Float[Array, "... i"], layer: scan.LayerInputs = scan.NO_INPUTS
    ) -> Float[Array, "... o"]:
        x = at_place(self.before, x, x, layer)
        y = functions.matmul(x, self.kernel[...])
        if self.bias is not None:
            y = y + functions.along_last(self.bias[...].astype(y.dtype), y)
        if self.reweighted is not None:
            y = self.reweighted(y, x, layer, self)
        return at_place(self.delta, y, x, layer)


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis, in float32, and a place behind it, `delta`."""

    def __init__(self, width: int, *, eps: float, stack: tuple[int, ...] = ()):
        self.scale = nnx.Param(jnp.ones((*stack, width)))
        self.bias = nnx.Param(jnp.zeros((*stack, width)))
        self.delta = nnx.data(None)
        self.eps = eps

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        scale, bias = (p[...].astype(jnp.float32) for p in (self.scale, self.bias))
        y = functions.layer_norm(x, scale, bias, self.eps)
        return at_place(self.delta, y, x, scan.NO_INPUTS)
