"""The ring of devices that share a batch, and blocks of one device's rows."""

from __future__ import annotations

import dataclasses
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

    The devices pass their rows round the ring, and each takes those that it needs. So a device
    holds its own rows, those it takes, and those of one other device, however many there are.
    """
    ring = Ring(mesh)
    if ring.size == 1:
        return jax.tree.map(lambda x: x[index], tree)

    def local(rows: _Tree, wanted: Array) -> _Tree:
        count = len(jax.tree.leaves(rows)[0])

        def take(passing: _Tree, taken: _Tree, owner: Array) -> _Tree:
            place = wanted - owner * count
            passes = (place >= 0) & (place < count)

            def one(x: Array, y: Array) -> Array:
                new = x[jnp.clip(place, 0, count - 1)]
                return jnp.where(passes.reshape(-1, *[1] * (x.ndim - 1)), new, y)

            return jax.tree.map(one, passing, taken)

        def step(carry: tuple[_Tree, _Tree], i: Array) -> tuple[tuple[_Tree, _Tree], None]:
            passing = ring.next(carry[0])
            return (passing, take(passing, carry[1], (ring.here - i) % ring.size)), None

        blank = jax.tree.map(jnp.zeros_like, rows)
        first = take(rows, blank, jnp.asarray(ring.here))
        (_, taken), _ = jax.lax.scan(step, (rows, first), jnp.arange(1, ring.size))
        return taken

    rows_in = jax.tree.map(lambda _: True, tree)
    return ring.map(local, (rows_in, True), rows_in)(tree, index)


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
