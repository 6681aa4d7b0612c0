"""Layers of one kind, stacked, and run by one scan.

Every parameter carries a leading axis `z` of layers, so that 24 layers compile as fast as 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from uniadapter_jax.common.randomness import fold_name, split
from uniadapter_jax.common.types import Array, Float, PyTree


class LayerInputs(NamedTuple):
    """Inputs of a layer beside its own parameters.

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


def of_first_layer(shared: PyTree | None) -> LayerInputs:
    """What the first layer is handed of what all share, without a key."""
    return LayerInputs(jax.tree.map(lambda leaf: leaf[0], shared))


class Below(nnx.Param):
    """A parameter ahead of the layer where a method begins: no method acts on it or trains it."""


def retype(module: nnx.Module, old: type[nnx.Param], new: type[nnx.Param]) -> None:
    """Makes every parameter in a module that is of the type `old` one of `new`."""
    for _, node in list(nnx.iter_modules(module, graph=True)):
        for name, value in list(vars(node).items()):
            if type(value) is old:
                setattr(node, name, new(value[...]))


class Stack(nnx.Module):
    """Layers of one kind, stacked: what `collect_layers` runs.

    Attributes:
      weights: the place for what the parameters of a layer go through on their way to it, where
        they are not whole before (`sharding.Weights`); None in the bare backbone.
      adapted: whether a method may act on these layers; not where it begins above them.
    """

    weights: LayerWeights | None = None
    adapted: bool = True

    def segments(self, layers: int) -> tuple[Segment, ...]:
        """The stacks that run one after another, of a tower of so many layers."""
        return (Segment(self, slice(0, layers)),)

    def joined(self) -> Stack:
        """All layers in one."""
        return self


class Segment(NamedTuple):
    """A stack and the layers of its tower that it holds."""

    stack: Stack
    rows: slice


class Cut(nnx.Module):
    """A stack in two: the layers `below`, and those from layer `at` on, `above`.

    Where all that trains is above, no gradient enters the layers below. What towers share is cut
    for the layers above alone.
    """

    def __init__(self, stack: Stack, at: int):
        graphdef, state = nnx.split(stack, graph=True)
        self.below, self.above = (
            nnx.merge(graphdef, jax.tree.map(lambda leaf, rows=rows: leaf[rows], state), copy=True)
            for rows in (slice(0, at), slice(at, None))
        )
        retype(self.below, nnx.Param, Below)
        self.below.adapted = False
        self.at = at

    def segments(self, layers: int) -> tuple[Segment, ...]:
        """As `Stack.segments`."""
        rows = slice(0, self.at), slice(self.at, layers)
        return Segment(self.below, rows[0]), Segment(self.above, rows[1])

    def joined(self) -> Stack:
        """As `Stack.joined`: the stack as it was before it was cut, with the weights of now."""
        parts = (nnx.to_pure_dict(nnx.state(half, graph=True)) for half in (self.below, self.above))
        graphdef, state = nnx.split(self.above, graph=True)
        whole = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        nnx.replace_by_pure_dict(state, whole)
        return nnx.merge(graphdef, state)


class LayerWeights(Protocol):
    """Parameters of a layer as they are kept, to parameters as they are used.

    gathers: whether that makes something larger, not to be kept for the backward pass.
    """

    @property
    def gathers(self) -> bool: ...

    def __call__(self, tree: PyTree) -> PyTree: ...


# `dots` keeps what products made and recomputes the rest; `full` keeps a layer's input only.
REMAT: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
}


def _all_but_weights(primitive: Any, *_: Any, **__: Any) -> bool:
    """The policy of `remat=none` where weights are gathered: all else is kept."""
    return primitive.name != "sharding_constraint"


def collect_layers(
    call: Callable[[Any, Any, LayerInputs, Any], tuple[Any, Any]],
    stacked: Stack | Cut,
    x: PyTree,
    own: PyTree,
    layers: int,
    *,
    remat: str = "none",
    shared: PyTree | None = None,
    key: Array | None = None,
    drop_path: Float[Array, " z"] | None = None,
    above_only: bool = False,
    unrolled: bool = False,
) -> tuple[PyTree, PyTree]:
    """Runs every layer, by one scan; a layer is also handed something of its own, and gives some.

    `x, result = call(layer i, x, its inputs, slice i of own)`; returns the last x and the results
    with a leading axis of layers. What all layers use alike may be closed over by `call`; the rest
    is as in `layers.run_and_keep`. Leaves of `shared` lead with the axis of the layers that a
    method may act on, which are all where the tower is not cut. `above_only`: x is what enters the
    layers above the cut, and only these run, with the keys that they have in the whole. `unrolled`:
    layer by layer without a scan, so that x may change its shape; then there are no results.
    """
    keys = None if key is None else split(key, layers)
    inputs, made = (keys, drop_path, own), []
    segments = stacked.segments(layers)
    for stack, rows in segments[-1:] if above_only else segments:
        of_segment = inputs
        if len(segments) > 1:
            of_segment = jax.tree.map(lambda leaf, rows=rows: leaf[rows], inputs)
        key, rate, own = of_segment
        layer = LayerInputs(shared if stack.adapted else None, key, rate)
        x, results = _run(call, stack, x, (layer, own), rows.stop - rows.start, remat, unrolled)
        made.append(results)
    return x, made[0] if len(made) == 1 else jax.tree.map(lambda *y: jnp.concatenate(y), *made)


def _run(
    call: Callable[[Any, Any, LayerInputs, Any], tuple[Any, Any]],
    stacked: Stack,
    x: PyTree,
    inputs: tuple[LayerInputs, PyTree],
    layers: int,
    remat: str,
    unrolled: bool,
) -> tuple[PyTree, PyTree]:
    """One stack, by one scan unless `unrolled`; `inputs` lead with the axis of its layers."""
    graphdef, state = nnx.split(stacked, graph=True)

    def body(carry: Any, xs: Any) -> tuple[Any, Any]:
        state, layer, own = xs
        if stacked.weights is not None:
            state = stacked.weights(state)
        return call(nnx.merge(graphdef, state, copy=True), carry, layer, own)

    policy = REMAT[remat]
    if policy is None and stacked.weights is not None and stacked.weights.gathers:
        policy = _all_but_weights
    if policy is not None:
        body = jax.checkpoint(body, policy=policy, prevent_cse=unrolled)
    if not unrolled:
        return lax.scan(body, x, (state, *inputs), length=layers)
    for i in range(layers):
        x, _ = body(x, jax.tree.map(lambda leaf, i=i: leaf[i], (state, *inputs)))
    return x, None
