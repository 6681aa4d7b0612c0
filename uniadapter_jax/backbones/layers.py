"""Transformer layers with named places where a method may act.

The layers of a tower are stacked (`scan`). A *place* is an attribute that is `None` in the bare
backbone; a method puts a module there which returns what is to be added at that point:

    Linear.delta          y = x @ kernel + bias + delta(x)
    Block.after_attn      x = x + (z + after_attn(z)),  z = attn(ln_1(x))
    Block.after_mlp       x = x + (z + after_mlp(z)),   z = mlp(ln_2(x))
    Block.beside_mlp      x = x + z + beside_mlp(x)

A module at a place is called with the array there and a `scan.LayerInputs`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uniadapter_jax.backbones import functions, scan
from uniadapter_jax.common.randomness import normal
from uniadapter_jax.common.types import Array, Bool, Float, PyTree

# Where initial weights come from; None makes zeros, for weights that a file will fill.
Rng = np.random.Generator | None


# ---------------------------------------------------------------------------------------------
# Modules. `stack` is the leading shape of the parameters: () or (layers,).
# ---------------------------------------------------------------------------------------------


class Linear(nnx.Module):
    """y = x @ kernel + bias, and the place `delta` for low-rank and other linear methods."""

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
        shape = (*stack, width_in, width_out)
        self.kernel = nnx.Param(normal(rng, std, *shape))
        self.bias = nnx.data(nnx.Param(jnp.zeros((*stack, width_out))) if use_bias else None)
        self.delta = nnx.data(None)

    def __call__(
        self, x: Float[Array, "... i"], layer: scan.LayerInputs = scan.NO_INPUTS
    ) -> Float[Array, "... o"]:
        y = functions.matmul(x, self.kernel[...])
        if self.bias is not None:
            y = y + functions.along_last(self.bias[...].astype(y.dtype), y)
        return y if self.delta is None else y + self.delta(x, layer)


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis, in float32."""

    def __init__(self, width: int, *, eps: float, stack: tuple[int, ...] = ()):
        self.scale = nnx.Param(jnp.ones((*stack, width)))
        self.bias = nnx.Param(jnp.zeros((*stack, width)))
        self.eps = eps

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        scale, bias = (p[...].astype(jnp.float32) for p in (self.scale, self.bias))
        return functions.layer_norm(x, scale, bias, self.eps)


class Attention(nnx.Module):
    """Multi-head self-attention with the reference's four named linear layers."""

    def __init__(self, width: int, heads: int, layers: int, *, rng: Rng):
        stack = (layers,)
        # CLIP's own initialisation (OpenAI's CLIP.initialize_parameters).
        std_in, std_out = width**-0.5, width**-0.5 * (2 * layers) ** -0.5
        self.q = Linear(width, width, stack=stack, std=std_in, rng=rng)
        self.k = Linear(width, width, stack=stack, std=std_in, rng=rng)
        self.v = Linear(width, width, stack=stack, std=std_in, rng=rng)
        self.out = Linear(width, width, stack=stack, std=std_out, rng=rng)
        self.heads = heads

    def __call__(
        self, x: Float[Array, "b s d"], mask: Bool[Array, "s s"] | None, layer: scan.LayerInputs
    ) -> Float[Array, "b s d"]:
        def heads_first(y: Array) -> Array:
            return y.reshape(*y.shape[:2], self.heads, -1).swapaxes(1, 2)

        q, k, v = (heads_first(linear(x, layer)) for linear in (self.q, self.k, self.v))
        z = attend(q, k, v, mask)
        return self.out(z.swapaxes(1, 2).reshape(x.shape), layer)


def attend(
    q: Float[Array, "b h s k"],
    k: Float[Array, "b h t k"],
    v: Float[Array, "b h t k"],
    mask: Bool[Array, "s t"] | None,
) -> Float[Array, "b h s k"]:
    """softmax(q k^T / sqrt(width of a head)) v; softmax in float32, False in `mask` is unseen."""
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    logits = jnp.einsum("bhsk,bhtk->bhst", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask[None, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    z = jnp.einsum("bhst,bhtk->bhsk", weights, v, preferred_element_type=jnp.float32)
    return z.astype(v.dtype)


class MLP(nnx.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, layers: int, activation: str, *, rng: Rng):
        stack = (layers,)
        self.fc1 = Linear(width, hidden, stack=stack, std=(2 * width) ** -0.5, rng=rng)
        std_out = width**-0.5 * (2 * layers) ** -0.5
        self.fc2 = Linear(hidden, width, stack=stack, std=std_out, rng=rng)
        self.activation = activation

    def __call__(self, x: Float[Array, "b s d"], layer: scan.LayerInputs) -> Float[Array, "b s d"]:
        return self.fc2(functions.ACTIVATIONS[self.activation](self.fc1(x, layer)), layer)


class Block(scan.Stack):
    """A pre-LayerNorm block; `layers` of them stacked."""

    def __init__(
        self,
        width: int,
        hidden: int,
        heads: int,
        layers: int,
        *,
        activation: str,
        eps: float,
        rng: Rng,
    ):
        stack = (layers,)
        self.ln_1 = LayerNorm(width, eps=eps, stack=stack)
        self.attn = Attention(width, heads, layers, rng=rng)
        self.ln_2 = LayerNorm(width, eps=eps, stack=stack)
        self.mlp = MLP(width, hidden, layers, activation, rng=rng)
        self.after_attn = nnx.data(None)
        self.after_mlp = nnx.data(None)
        self.beside_mlp = nnx.data(None)

    def __call__(
        self, x: Float[Array, "b s d"], mask: Bool[Array, "s s"] | None, layer: scan.LayerInputs
    ) -> Float[Array, "b s d"]:
        z = self.attn(self.ln_1(x), mask, layer)
        if self.after_attn is not None:
            z = z + self.after_attn(z, layer)
        x = x + functions.drop_path(z, layer.drop_path, layer.key_of("drop_path.attn"))
        z = self.mlp(self.ln_2(x), layer)
        if self.after_mlp is not None:
            z = z + self.after_mlp(z, layer)
        z = functions.drop_path(z, layer.drop_path, layer.key_of("drop_path.mlp"))
        if self.beside_mlp is not None:
            z = z + self.beside_mlp(x, layer)
        return x + z


def run_stack(
    blocks: Block,
    x: Float[Array, "b s d"],
    *,
    layers: int,
    remat: str,
    mask: Bool[Array, "s s"] | None = None,
    shared: PyTree | None = None,
    key: Array | None = None,
    drop_path: float = 0.0,
) -> Float[Array, "b s d"]:
    """Runs stacked blocks by one scan.

    Args:
      shared: a tree whose leaves lead with the axis of layers; layer i gets slice i.
      key: a key for dropout, split over the layers; None is deterministic.
      remat: a name of `scan.REMAT`.
      drop_path: the rate of stochastic depth in the last layer; it rises linearly from 0.
    """
    rates = jnp.linspace(0.0, drop_path, layers) if drop_path and key is not None else None

    def call(block: Block, x: Array, layer: scan.LayerInputs) -> Array:
        return block(x, mask, layer)

    return scan.scan_layers(
        call, blocks, x, layers=layers, remat=remat, shared=shared, key=key, drop_path=rates
    )
