"""Transformer layers with the places where a method may act; docs/methods.md has their table.

The layers of a tower are stacked (`scan`). A *place* is an attribute that is `None` in the bare
backbone. A method puts a module there, which is called as `module(y, x, layer)`: y is what is
there, x is what it was made of, `layer` a `scan.LayerInputs`. It returns what takes the place of y:

    Linear.before         x = before(x, x), before the product
    Linear.delta          y = delta(x @ kernel + bias, x)
    Block.after_attn      z = after_attn(attn(ln_1(x)), x), before x + z; after_mlp likewise
    Block.beside_mlp      z = beside_mlp(mlp(ln_2(x)), x), after stochastic depth

A module at `Block.prompts` is called with `layer` alone and returns tokens "p d", which stand ahead
of the layer's x as it goes into attention's keys and values, and are seen from everywhere. They
have no row of their own, so what a layer returns has the shape that it had.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uniadapter_jax.backbones import functions, scan
from uniadapter_jax.common.randomness import normal
from uniadapter_jax.common.types import Array, Bool, Float, PyTree

# Where initial weights come from; None makes zeros, for weights that a file will fill.
Rng = np.random.Generator | None


def at_place(
    place: Any, y: Float[Array, "... o"], x: Float[Array, "... i"], layer: scan.LayerInputs
) -> Float[Array, "... o"]:
    """y, or what the module at a place makes of it; x is what y was made of."""
    return y if place is None else place(y, x, layer)


# ---------------------------------------------------------------------------------------------
# Modules. `stack` is the leading shape of the parameters: () or (layers,).
# ---------------------------------------------------------------------------------------------


class Linear(nnx.Module):
    """y = x @ kernel + bias, and a place on either side: `before` and `delta`."""

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
        self.before = nnx.data(None)
        self.delta = nnx.data(None)

    def __call__(
        self, x: Float[Array, "... i"], layer: scan.LayerInputs = scan.NO_INPUTS
    ) -> Float[Array, "... o"]:
        x = at_place(self.before, x, x, layer)
        y = functions.matmul(x, self.kernel[...])
        if self.bias is not None:
            y = y + functions.along_last(self.bias[...].astype(y.dtype), y)
        return at_place(self.delta, y, x, layer)


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
        self,
        x: Float[Array, "b s d"],
        mask: Bool[Array, "s s"] | None,
        layer: scan.LayerInputs,
        prompts: Float[Array, "p d"] | None = None,
    ) -> Float[Array, "b s d"]:
        """Self-attention; `prompts` stand ahead of x in keys and values, seen from everywhere."""

        def heads_first(y: Array) -> Array:
            return y.reshape(*y.shape[:2], self.heads, -1).swapaxes(1, 2)

        seen = x
        if prompts is not None:
            seen = ahead(prompts, x)
            if mask is not None:
                mask = jnp.pad(mask, ((0, 0), (len(prompts), 0)), constant_values=True)
        q = heads_first(self.q(x, layer))
        k, v = (heads_first(linear(seen, layer)) for linear in (self.k, self.v))
        z = attend(q, k, v, mask)
        return self.out(z.swapaxes(1, 2).reshape(x.shape), layer)


def ahead(prompts: Float[Array, "p d"], x: Float[Array, "b s d"]) -> Float[Array, "b t d"]:
    """x with the same tokens ahead of every row; t = p + s."""
    tokens = jnp.broadcast_to(prompts.astype(x.dtype), (len(x), *prompts.shape))
    return jnp.concatenate([tokens, x], axis=1)


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

    SUBLAYERS = ("attn", "mlp")
    prompts: Any
    after_attn: Any
    beside_attn: Any
    after_mlp: Any
    beside_mlp: Any

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
        for place in ("prompts", "after_attn", "beside_attn", "after_mlp", "beside_mlp"):
            setattr(self, place, nnx.data(None))

    def __call__(
        self, x: Float[Array, "b s d"], mask: Bool[Array, "s s"] | None, layer: scan.LayerInputs
    ) -> Float[Array, "b s d"]:
        prompts = None if self.prompts is None else self.ln_1(self.prompts(layer))
        z = self.attn(self.ln_1(x), mask, layer, prompts)
        z = at_place(self.after_attn, z, x, layer)
        z = functions.drop_path(z, layer.drop_path, layer.key_of("drop_path.attn"))
        x = x + at_place(self.beside_attn, z, x, layer)
        z = at_place(self.after_mlp, self.mlp(self.ln_2(x), layer), x, layer)
        z = functions.drop_path(z, layer.drop_path, layer.key_of("drop_path.mlp"))
        return x + at_place(self.beside_mlp, z, x, layer)


class Tower(NamedTuple):
    """A stack of layers of a backbone, as methods find it.

    name: "vision", "text" or "decoder"; also what `layer_slices` of shared parameters is asked for.
    blocks: the stacked layers; `blocks.SUBLAYERS` names the sub-layers, which have places.
    """

    name: str
    blocks: Any
    layers: int
    width: int


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
