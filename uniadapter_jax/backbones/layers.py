"""Transformer layers with named places where a method may act.

The layers of a tower are stacked: every parameter carries a leading axis `z` of layers, and
`Stack` runs them by one scan, so that 24 layers compile as fast as 4. A *place* is an attribute
that is `None` in the bare backbone; a method puts a module there which returns what is to be
added at that point:

    Linear.delta          y = x @ kernel + bias + delta(x)
    Block.after_attn      x = x + (z + after_attn(z)),  z = attn(ln_1(x))
    Block.after_mlp       x = x + (z + after_mlp(z)),   z = mlp(ln_2(x))
    Block.beside_mlp      x = x + z + beside_mlp(x)

A module at a place is called with the array there and a `LayerInputs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from uniadapter_jax.randomness import bernoulli, fold_name, normal, split
from uniadapter_jax.types import Array, Bool, Float, PyTree, Shaped

# Where initial weights come from; None makes zeros, for weights that a file will fill.
Rng = np.random.Generator | None


class LayerInputs(NamedTuple):
    """What a layer is handed beside its own parameters.

    shared: this layer's slice of what the towers of a model share (None without such a method).
    key: this layer's key for dropout, or keys of the rows; None means deterministic.
    drop_path: the probability of leaving out what a sub-layer adds; None means never.
    """

    shared: PyTree | None = None
    key: Array | None = None
    drop_path: Array | None = None

    def key_of(self, name: str) -> Array | None:
        """The key of what is drawn under `name` in this layer."""
        return None if self.key is None else fold_name(self.key, name)


NO_INPUTS = LayerInputs()


def along_last(vector: Float[Array, " d"], like: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """`vector` with leading axes of size one, to be combined with `like`."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


# ---------------------------------------------------------------------------------------------
# Activations and normalisation. Both keep only their input for the backward pass: the plain
# forms keep every intermediate, which costs about as much memory as the rest of the layer.
# ---------------------------------------------------------------------------------------------


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


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"quick_gelu": quick_gelu, "gelu": gelu}


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
    if key is None or rate == 0.0:
        return x
    keep = bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


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
        self, x: Float[Array, "... i"], layer: LayerInputs = NO_INPUTS
    ) -> Float[Array, "... o"]:
        y = matmul(x, self.kernel[...])
        if self.bias is not None:
            y = y + along_last(self.bias[...].astype(y.dtype), y)
        return y if self.delta is None else y + self.delta(x, layer)


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis, in float32."""

    def __init__(self, width: int, *, eps: float, stack: tuple[int, ...] = ()):
        self.scale = nnx.Param(jnp.ones((*stack, width)))
        self.bias = nnx.Param(jnp.zeros((*stack, width)))
        self.eps = eps

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        scale, bias = (p[...].astype(jnp.float32) for p in (self.scale, self.bias))
        return layer_norm(x, scale, bias, self.eps)


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
        self, x: Float[Array, "b s d"], mask: Bool[Array, "s s"] | None, layer: LayerInputs
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

    def __call__(self, x: Float[Array, "b s d"], layer: LayerInputs) -> Float[Array, "b s d"]:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x, layer)), layer)


class Stack(nnx.Module):
    """Layers of one kind, stacked: what `collect_layers` runs.

    `weights` is the place for what the parameters of a layer go through on their way to it, where
    they are not whole before (`sharding.Weights`); None in the bare backbone.
    """

    weights: LayerWeights | None = None


class LayerWeights(Protocol):
    """Parameters of a layer as they are kept, to parameters as they are used.

    gathers: whether that makes something larger, not to be kept for the backward pass.
    """

    @property
    def gathers(self) -> bool: ...

    def __call__(self, tree: PyTree) -> PyTree: ...


class Block(Stack):
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
        self, x: Float[Array, "b s d"], mask: Bool[Array, "s s"] | None, layer: LayerInputs
    ) -> Float[Array, "b s d"]:
        z = self.attn(self.ln_1(x), mask, layer)
        if self.after_attn is not None:
            z = z + self.after_attn(z, layer)
        x = x + drop_path(z, layer.drop_path, layer.key_of("drop_path.attn"))
        z = self.mlp(self.ln_2(x), layer)
        if self.after_mlp is not None:
            z = z + self.after_mlp(z, layer)
        z = drop_path(z, layer.drop_path, layer.key_of("drop_path.mlp"))
        if self.beside_mlp is not None:
            z = z + self.beside_mlp(x, layer)
        return x + z


# `dots` keeps what products made and recomputes the rest; `full` keeps a layer's input only.
REMAT: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
}


def _all_but_weights(primitive: Any, *_: Any, **__: Any) -> bool:
    """Of `remat=none` where weights are gathered: all else is kept."""
    return primitive.name != "sharding_constraint"


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
      remat: a name of `REMAT`.
      drop_path: the rate of stochastic depth in the last layer; it rises linearly from 0.
    """
    rates = jnp.linspace(0.0, drop_path, layers) if drop_path and key is not None else None

    def call(block: Block, x: Array, layer: LayerInputs) -> Array:
        return block(x, mask, layer)

    return scan_layers(
        call, blocks, x, layers=layers, remat=remat, shared=shared, key=key, drop_path=rates
    )


def scan_layers(
    call: Callable[[Any, Array, LayerInputs], Array],
    stacked: Stack,
    x: Float[Array, "..."],
    *,
    layers: int,
    remat: str,
    shared: PyTree | None = None,
    key: Array | None = None,
    drop_path: Float[Array, " z"] | None = None,
) -> Float[Array, "..."]:
    """`x = call(layer i of stacked, x, its inputs)` for every layer, by one scan.

    What all layers use alike may be closed over by `call`. The rest is as in `run_stack`.
    """

    def passing(block: Any, x: Array, layer: LayerInputs, own: None) -> tuple[Array, None]:
        return call(block, x, layer), None

    return collect_layers(
        passing, stacked, x, None, layers, remat=remat, shared=shared, key=key, drop_path=drop_path
    )[0]


def collect_layers(
    call: Callable[[Any, Array, LayerInputs, Any], tuple[Array, Any]],
    stacked: Stack,
    x: Float[Array, "..."],
    own: PyTree,
    layers: int,
    *,
    remat: str = "none",
    shared: PyTree | None = None,
    key: Array | None = None,
    drop_path: Float[Array, " z"] | None = None,
) -> tuple[Float[Array, "..."], PyTree]:
    """`scan_layers` where a layer is also handed something of its own, and gives something back.

    `x, found = call(layer i, x, its inputs, slice i of own)`; returns the last x and all that was
    found, with a leading axis of layers.
    """
    graphdef, state = nnx.split(stacked)
    keys = None if key is None else split(key, layers)

    def body(carry: Array, xs: Any) -> tuple[Array, Any]:
        state, layer, own = xs
        if stacked.weights is not None:
            state = stacked.weights(state)
        return call(nnx.merge(graphdef, state, copy=True), carry, layer, own)

    policy = REMAT[remat]
    if policy is None and stacked.weights is not None and stacked.weights.gathers:
        policy = _all_but_weights
    if policy is not None:
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    return lax.scan(body, x, (state, LayerInputs(shared, keys, drop_path), own), length=layers)


def tiles(pixels: Shaped[Array, "b H W 3"], patch: int) -> Shaped[Array, "b s i"]:
    """Square pictures cut into rows of patches; each is flattened as (row, column, colour)."""
    b, grid = pixels.shape[0], pixels.shape[1] // patch
    cut = pixels.reshape(b, grid, patch, grid, patch, 3).swapaxes(2, 3)
    return cut.reshape(b, grid * grid, patch * patch * 3)


def causal_mask(length: int) -> Bool[Array, "s s"]:
    """True where a position may look: itself and what stands before it."""
    return jnp.tril(jnp.ones((length, length), bool))


def logit_scale_init() -> float:
    """ln(1 / .07), CLIP's initial temperature."""
    return math.log(1 / 0.07)
