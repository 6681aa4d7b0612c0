"""The device mesh: its axes, and the transfer of host arrays to it and back.

Devices along the mesh are not sorted by process: on most TPU slices hosts interleave along the
batch. Only `rows_of_process` says which rows of a global batch a process supplies, and values
gathered from processes are in the order of the processes' indices, wherever their devices are.
"""

from __future__ import annotations

import collections
import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Int, PyTree, Shaped

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # the axes that shard a batch
HEADS_AXIS = "tensor"  # the axis that shards heads of attention

_Tree = TypeVar("_Tree")


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices of all processes; one size may be -1, "the rest".

    `devices` may be other devices, such as those of a TPU slice that is only described.

    Raises:
      UserError: the sizes do not multiply to the number of devices, JAX finds no order of these
        devices for them, or processes have unequal numbers of devices.
    """
    devices = jax.devices() if devices is None else devices
    _check_equal_shares(devices)
    shape = tuple(axis_sizes(sizes, len(devices)).values())
    try:
        return _arrange(shape, devices)
    except (AssertionError, NotImplementedError, ValueError) as error:
        kind = devices[0].device_kind
        raise UserError(
            f"config.mesh: {_said(sizes)} cannot be laid over {len(devices)} x {kind}: "
            f"{str(error) or 'JAX does not know how they are connected'}. Choose other sizes"
        ) from error


def _check_equal_shares(devices: Sequence[Any]) -> None:
    """Raises `UserError` unless all processes have equally many devices, as JAX assumes."""
    counts = collections.Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        most, least = (function(counts, key=lambda p: counts[p]) for function in (max, min))
        raise UserError(
            f"config.mesh: all processes need equally many devices, but process {most} has "
            f"{counts[most]} and process {least} has {counts[least]}"
        )


def _arrange(shape: tuple[int, ...], devices: Sequence[Any]) -> Mesh:
    """A mesh of the devices in the order that JAX chooses for their links."""
    types = (AxisType.Auto,) * len(AXES)
    try:
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    except NotImplementedError:
        # By default JAX splits the links of one physical axis between mesh axes only for v5e: on
        # other chips a torus of 4 x 4 x 4 has no tensor=2.
        split = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(split, AXES, axis_types=types)


def axis_sizes(sizes: Mapping[str, int], devices: int) -> dict[str, int]:
    """The sizes with -1 replaced, so that they multiply to the number of devices.

    Raises:
      UserError: no such sizes exist.
    """
    wanted = [int(sizes[axis]) for axis in AXES]
    fixed = int(np.prod([size for size in wanted if size != -1]))
    if wanted.count(-1) > 1 or any(size < 1 and size != -1 for size in wanted):
        raise UserError(f"config.mesh: {_said(sizes)}: sizes are positive, and at most one is -1")
    if -1 in wanted and devices % fixed == 0:
        wanted[wanted.index(-1)] = devices // fixed
    if int(np.prod(wanted)) != devices or -1 in wanted:
        raise UserError(f"config.mesh: {_said(sizes)} does not fit {devices} devices")
    return dict(zip(AXES, wanted, strict=True))


def _said(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis}={int(sizes[axis])}" for axis in AXES)


def one_device() -> Mesh:
    """A mesh of this process' first device, for work that is not sharded."""
    device = np.array(jax.local_devices()[:1]).reshape((1,) * len(AXES))
    return Mesh(device, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def on_host() -> contextlib.AbstractContextManager[Any]:
    """Places new arrays in the host's memory, if JAX has a CPU backend, not on a device."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return contextlib.nullcontext()
    return jax.default_device(device)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Shards the leading axis over all batch axes of the mesh."""
    return NamedSharding(mesh, P(BATCH_AXES))


def constrain(tree: _Tree, mesh: Mesh | None, axes: tuple[str, ...]) -> _Tree:
    """Shards the leading axis over those `axes` the mesh has; () puts a copy on every device."""
    if mesh is None or mesh.size == 1:
        return tree
    present = tuple(name for name in axes if name in mesh.axis_names)
    sharding = NamedSharding(mesh, P(present) if present else P())
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """Puts a copy on every device."""
    return NamedSharding(mesh, P())


def batch_shards(mesh: Mesh) -> int:
    """The number of shards of a global batch."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def round_up(mesh: Mesh, batch_size: int) -> int:
    """The smallest global batch that is no smaller and divides over the mesh."""
    shards = batch_shards(mesh)
    return -(-batch_size // shards) * shards


def check_divides(mesh: Mesh, batch_size: int, field: str) -> None:
    """Raises `UserError` unless the global batch divides over the mesh."""
    shards = batch_shards(mesh)
    if batch_size % shards:
        raise UserError(
            f"config.{field}={batch_size} does not divide over {shards} devices "
            f"(mesh {dict(mesh.shape)}); the next sizes that do: "
            f"{batch_size // shards * shards or shards} and {(batch_size // shards + 1) * shards}"
        )


@functools.lru_cache
def rows_of_process(mesh: Mesh, size: int, process: int | None = None) -> Int[np.ndarray, " b"]:
    """The rows of a global batch of `size` that a process supplies, ascending; often with gaps.

    They are the rows of the shards on its devices. Devices along `tensor` hold the same shard: if
    they belong to several processes, each of these supplies its rows.

    Args:
      process: index of the process; None is this one. Others are for devices only described.

    Raises:
      UserError: the batch does not divide over the mesh, or the process has no device in it.
    """
    process = jax.process_index() if process is None else process
    if size % batch_shards(mesh):
        raise UserError(
            f"config.mesh: a batch of {size} rows does not divide over the {batch_shards(mesh)} "
            f"parts of {_said(mesh.shape)}"
        )
    indices: Mapping[Any, Any] = batch_sharding(mesh).devices_indices_map((size,))
    spans = {
        span.indices(size)[:2]
        for device, (span,) in indices.items()
        if device.process_index == process
    }
    if not spans:
        raise UserError(f"config.mesh: process {process} has no device in {_said(mesh.shape)}")
    rows = np.concatenate([np.arange(start, stop) for start, stop in sorted(spans)])
    rows.setflags(write=False)  # one array for all callers
    return rows


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, size: int) -> dict[str, jax.Array]:
    """A global batch of `size` rows, sharded over the mesh, from this process' rows of it.

    Raises:
      ValueError: an array has another number of rows than `rows_of_process` gives.
    """
    supplied, sharding = rows_of_process(mesh, size), batch_sharding(mesh)

    def put(name: str, rows: np.ndarray) -> jax.Array:
        if len(rows) != len(supplied):
            raise ValueError(
                f"{name!r} has {len(rows)} rows; of a global batch of {size} this process supplies "
                f"{len(supplied)}"
            )

        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # None is for keys of random numbers only
            start, stop, _ = index[0].indices(size)
            first = int(np.searchsorted(supplied, start))  # a shard's rows are consecutive
            return rows[first : first + stop - start]

        return jax.make_array_from_callback((size, *rows.shape[1:]), sharding, shard)

    return {name: put(name, rows) for name, rows in batch.items()}


def put_everywhere(rows: Any, mesh: Mesh, size: int) -> jax.Array:
    """A global array of `size` rows, copied to every device, from this process' rows of it."""
    return _replicate(mesh)(put_batch({"rows": rows}, mesh, size)["rows"])


@functools.lru_cache
def _replicate(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda rows: rows, out_shardings=replicated(mesh))


def put_replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts host arrays, which are equal on all processes, on every device."""
    sharding = replicated(mesh)

    def put(x: Any) -> jax.Array:
        host = np.asarray(jax.device_get(x))
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree)


def of_processes(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "p ..."]:
    """The arrays of all processes, which have one shape, in the order of their indices."""
    return _of_processes(array, _all)


def of_first_process(array: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "n ..."]:
    """Gives every process the array of process 0; their own may have another length."""
    if jax.process_count() == 1:
        return array
    length = int(of_processes(np.array(len(array), np.int32))[0])
    if jax.process_index():
        array = np.zeros((length, *array.shape[1:]), array.dtype)
    return _of_processes(array, _first)


def _all(stacked: jax.Array) -> jax.Array:
    return stacked


def _first(stacked: jax.Array) -> jax.Array:
    return stacked[0]


def _of_processes(array: np.ndarray, function: Callable[[jax.Array], jax.Array]) -> np.ndarray:
    """`function` of the stacked arrays of all processes; the result is writable.

    One device of each process takes part, found by its process. JAX's `multihost_utils` reshapes
    `jax.devices()` instead, as if these were sorted by process.
    """
    first: dict[int, Any] = {}
    for device in sorted(jax.devices(), key=lambda device: device.id):
        first.setdefault(device.process_index, device)
    devices = np.array([first[process] for process in sorted(first)])
    mesh = Mesh(devices, ("process",), axis_types=(AxisType.Auto,))
    stacked = jax.make_array_from_callback(
        (len(devices), *array.shape), NamedSharding(mesh, P("process")), lambda _: array[None]
    )
    return np.array(jax.jit(function, out_shardings=replicated(mesh))(stacked).addressable_data(0))


def fetch(tree: PyTree) -> PyTree:
    """Copies replicated arrays to the host, also when other processes own devices too.

    All are on their way before the first is waited for.

    Raises:
      ValueError: an array is sharded, so that this process may not have all of it.
    """

    def start(x: jax.Array) -> jax.Array:
        if not x.is_fully_replicated:
            raise ValueError(f"an array of shape {x.shape} is cut over devices: {x.sharding}")
        mine = x.addressable_data(0)
        mine.copy_to_host_async()
        return mine

    return jax.tree.map(np.asarray, jax.tree.map(start, tree))


def placed(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """The shapes of a tree of arrays or shapes, all with one sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
