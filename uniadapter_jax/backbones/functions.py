"""Functions of layers: activations, normalisation, dropout, products.

Activations and normalisation keep only their input for the backward pass: the plain forms keep
every intermediate, which costs about as much memory as the rest of the layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from uniadapter_jax.common.randomness import bernoulli
from uniadapter_jax.common.types import Array, Bool, Float


def along_last(vector: Float[Array, " d"], like: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """`vector` with leading axes of size one, to be combined with `like`."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


@jax.custom_vjp
def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def _quick_gelu_fwd(x: Array) -> tuple[Array, Array]:
    return quick_gelu(x), x


def _quick_gelu_bwd(x: Array, g: Array) -> tuple[Array]:
    s = jax.nn.sigmoid(1.702 * x)
    return (g * (s + 1.702 * x * s * (1 - s)),)


quick_gelu.defvjp(_quick_gelu_fwd, _quick_gelu_bwd)


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x * Phi(x) with the exact error function (BERT, BLIP, many open_clip models)."""
    return jax.nn.gelu(x, approximate=False)


def _gelu_fwd(x: Array) -> tuple[Array, Array]:
    return gelu(x), x


def _gelu_bwd(x: Array, g: Array) -> tuple[Array]:
    density = jnp.exp(-0.5 * x * x) * (2.0 * math.pi) ** -0.5
    return (g * (0.5 * lax.erfc(-x * 2.0**-0.5) + x * density),)


gelu.defvjp(_gelu_fwd, _gelu_bwd)


@jax.custom_vjp
def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU by its approximation with tanh (SigLIP)."""
    return jax.nn.gelu(x, approximate=True)


def _gelu_tanh_fwd(x: Array) -> tuple[Array, Array]:
    return gelu_tanh(x), x


def _gelu_tanh_bwd(x: Array, g: Array) -> tuple[Array]:
    root = math.sqrt(2.0 / math.pi)
    t = jnp.tanh(root * (x + 0.044715 * x * x * x))
    slope = root * (1.0 + 3 * 0.044715 * x * x)
    return (g * 0.5 * (1.0 + t + x * (1.0 - t * t) * slope),)


gelu_tanh.defvjp(_gelu_tanh_fwd, _gelu_tanh_bwd)


# By transformers' names.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": gelu,
    "gelu_pytorch_tanh": gelu_tanh,
}


def _moments(x: Array, eps: float) -> tuple[Array, Array]:
    """x (float32) to (normalised x, reciprocal standard deviation)."""
    centred = x - x.mean(-1, keepdims=True)
    inverse = lax.rsqrt((centred * centred).mean(-1, keepdims=True) + eps)
    return centred * inverse, inverse


def layer_norm(
    x: Float[Array, "... d"], scale: Float[Array, " d"], bias: Float[Array, " d"], eps: float
) -> Float[Array, "... d"]:
    """LayerNorm in float32; the result has the dtype of `x`."""
    return _layer_norm(eps, x, scale, bias)


def _layer_norm_value(eps: float, x: Array, scale: Array, bias: Array) -> Array:
    normalised, _ = _moments(x.astype(jnp.float32), eps)
    out = normalised * along_last(scale, x) + along_last(bias, x)
    return out.astype(x.dtype)


_layer_norm = jax.custom_vjp(_layer_norm_value, nondiff_argnums=(0,))


def _layer_norm_fwd(eps: float, x: Array, scale: Array, bias: Array) -> tuple[Array, Any]:
    return _layer_norm_value(eps, x, scale, bias), (x, scale)


def _layer_norm_bwd(eps: float, residuals: Any, g: Array) -> tuple[Array, Array, Array]:
    x, scale = residuals
    normalised, inverse = _moments(x.astype(jnp.float32), eps)
    g32 = g.astype(jnp.float32)
    u = g32 * along_last(scale, g)
    along = u.mean(-1, keepdims=True)
    across = (u * normalised).mean(-1, keepdims=True)
    rows = tuple(range(g.ndim - 1))
    dx = (inverse * (u - along - normalised * across)).astype(x.dtype)
    return dx, (g32 * normalised).sum(rows), g32.sum(rows)


_layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


def dropout(x: Float[Array, "..."], rate: float, key: Array | None) -> Float[Array, "..."]:
    """Inverted dropout; the identity where `key` is None or the rate is 0."""
    keep = kept(x.shape, rate, key)
    if keep is None:
        return x
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def kept(shape: tuple[int, ...], rate: float, key: Array | None) -> Bool[Array, "..."] | None:
    """Which entries `dropout` of an array of this shape keeps; None is all of them."""
    return None if key is None or rate == 0.0 else bernoulli(key, 1.0 - rate, shape)


def drop_path(
    x: Float[Array, "b s d"], rate: Float[Array, ""] | None, key: Array | None
) -> Float[Array, "b s d"]:
    """Stochastic depth: whole rows of the batch are zero with probability `rate`, others grow.

    The identity where `key` or `rate` is None.
    """
    if key is None or rate is None:
        return x
    keep = bernoulli(key, 1.0 - rate, (len(x), 1, 1))
    return x * jnp.where(keep, 1.0 / (1.0 - rate), 0.0).astype(x.dtype)


def matmul(x: Float[Array, "... i"], kernel: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """x @ kernel in the dtype of `x`, accumulated in float32."""
    out = jnp.einsum("...i,io->...o", x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
    return out.astype(x.dtype)


def causal_mask(length: int) -> Bool[Array, "s s"]:
    """True where a position may look: itself and what stands before it."""
    return jnp.tril(jnp.ones((length, length), bool))
