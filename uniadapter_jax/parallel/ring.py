"""The ring of devices that share a batch, their rows by index, and blocks of one device's rows."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from uniadapter_jax.common.types import Array, Bool, Int
from uniadapter_jax.parallel.mesh import BATCH_AXES

_Tree = TypeVar("_Tree")


@dataclasses.dataclass(frozen=True)
class Ring:
    """The devices along the batch axes of a mesh; one device if there is no mesh."""

    mesh: Mesh | None

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of the mesh that shard the batch; none if one device has all rows."""
        if self.mesh is None:
            return ()
        return tuple(name for name in BATCH_AXES if self.mesh.shape.get(name, 1) > 1)

    @property
    def size(self) -> int:
        """The number of devices in the ring."""
        return math.prod(self.mesh.shape[name] for name in self.axes) if self.mesh else 1

    @property
    def here(self) -> Array | int:
        """The position of this device in the ring."""
        return jax.lax.axis_index(self.axes) if self.axes else 0

    def next(self, tree: _Tree) -> _Tree:
        """The arrays of the previous device."""
        if not self.axes:
            return tree
        pairs = [(i, (i + 1) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, pairs), tree)

    def sum(self, tree: _Tree) -> _Tree:
        """The sum over all devices of the ring."""
        return jax.tree.map(lambda x: jax.lax.psum(x, self.axes), tree) if self.axes else tree

    def map(self, function: Callable[..., Any], rows_in: Any, rows_out: Any) -> Callable[..., Any]:
        """`function` over each device's rows; the trees say which arrays have rows of the batch."""
        if self.mesh is None or self.mesh.size == 1:
            return function

        def specs(rows: Any) -> Any:
            return jax.tree.map(lambda has: P(self.axes) if has else P(), rows)

        # JAX need not check what varies over devices: sharded rows stay so, or nothing is derived.
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=specs(rows_in),
            out_specs=specs(rows_out),
            check_vma=False,
        )


def fetch_rows(tree: _Tree, index: Int[Array, " n"], mesh: Mesh | None) -> _Tree:
    """x[index] of every array, where the leading axes of all are sharded over the mesh alike.

    Every device has the same work, wherever the wanted rows are: of a row each device gets
    one piece, takes the pieces of all wanted rows from those of all rows, and sends each device
    those of the rows that it wants. A device holds pieces of the size of its own rows, and sends
    them twice, however many devices there are; gradients go the same way back.
    """
    ring = Ring(mesh)
    if ring.size == 1:
        return jax.tree.map(lambda x: x[index], tree)

    def local(rows: _Tree, wanted: Array) -> _Tree:
        everyone = jax.lax.all_gather(wanted, ring.axes, tiled=True)
        return jax.tree.map(lambda x: _taken(x, wanted, everyone, ring), rows)

    rows_in = jax.tree.map(lambda _: True, tree)
    return ring.map(local, (rows_in, True), rows_in)(tree, index)


def _taken(x: Array, wanted: Array, everyone: Array, ring: Ring) -> Array:
    """The rows of all devices that this one wants, where `everyone` is what all of them want."""
    count, width = len(x), math.prod(x.shape[1:])
    if width < ring.size:  # such as a mask: too narrow for pieces, and all of it is small
        return jax.lax.all_gather(x, ring.axes, tiled=True)[wanted]
    flat = jnp.pad(x.reshape(count, width), ((0, 0), (0, -width % ring.size)))
    send = functools.partial(jax.lax.all_to_all, axis_name=ring.axes, tiled=True)
    pieces = send(flat, split_axis=1, concat_axis=0)  # one of each row of all devices
    found = send(pieces[everyone], split_axis=0, concat_axis=1)
    return found[:, :width].reshape(len(wanted), *x.shape[1:])


@dataclasses.dataclass(frozen=True)
class Cut:
    """`length` rows in `count` blocks of `size`; the last overlaps if they do not divide."""

    length: int
    count: int
    size: int

    def start(self, i: Array) -> Array:
        return jnp.minimum(i * self.size, self.length - self.size)

    def fresh(self, i: Array) -> Bool[Array, " n"] | None:
        """A mask of the rows of block i that no earlier block has; None if it is all of them."""
        if self.count * self.size == self.length:
            return None
        return self.start(i) + jnp.arange(self.size) >= i * self.size

    def take(self, tree: _Tree, i: Array) -> _Tree:
        # XLA for CPUs widens bfloat16 before it takes rows; without the barrier it would widen the
        # complete array, once, ahead of the loop.
        tree, i = jax.lax.optimization_barrier((tree, i))

        def block(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, self.start(i), self.size)

        return jax.tree.map(block, tree)

    def put(self, tree: _Tree, block: _Tree, i: Array) -> _Tree:
        def update(x: Array, y: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(x, y.astype(x.dtype), self.start(i), 0)

        return jax.tree.map(update, tree, block)

    def add(self, tree: _Tree, block: _Tree, i: Array) -> _Tree:
        before = self.take(tree, i)
        return self.put(tree, jax.tree.map(lambda x, y: x + y.astype(x.dtype), before, block), i)


def cut_rows(length: int, limit: int) -> Cut:
    """Blocks of at most `limit` rows: a power of two, or all rows."""
    size = min(length, 2 ** max(0, int(limit).bit_length() - 1))
    return Cut(length, -(-length // size), size)
