"""The device mesh: its axes, and how host arrays get onto it and back."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uniadapter_jax.errors import UserError
from uniadapter_jax.types import PyTree

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # what a batch is cut over

_Tree = TypeVar("_Tree")


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices of all processes; one size may be -1, "the rest".

    `devices` may be others, such as those of a TPU slice that is only described.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or the processes cannot
        each hold a part of the batch.
    """
    devices = jax.devices() if devices is None else devices
    processes = len({device.process_index for device in devices})
    shape = tuple(axis_sizes(sizes, len(devices)).values())
    # Positional: the keyword's name differs between the releases of JAX that we support.
    types = (AxisType.Auto,) * len(AXES)
    mesh = jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    parts = batch_shards(mesh)
    if parts % processes:
        raise UserError(
            f"config.mesh: {_said(sizes)} cuts a batch into {parts} parts, which do not divide "
            f"over {processes} processes"
        )
    return mesh


def axis_sizes(sizes: Mapping[str, int], devices: int) -> dict[str, int]:
    """The sizes with -1 filled in, so that they multiply to the number of devices.

    Raises:
      UserError: there are none.
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
    """A mesh of this process' first device, for work that is not to be cut."""
    device = np.array(jax.local_devices()[:1]).reshape((1,) * len(AXES))
    return Mesh(device, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def on_host() -> contextlib.AbstractContextManager[Any]:
    """Within it new arrays lie with the host's processor, if JAX has that, not on a device."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return contextlib.nullcontext()
    return jax.default_device(device)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over all batch axes of the mesh."""
    return NamedSharding(mesh, P(BATCH_AXES))


def constrain(tree: _Tree, mesh: Mesh | None, axes: tuple[str, ...]) -> _Tree:
    """Shards the leading axis over those `axes` the mesh has; () puts a copy on every device."""
    if mesh is None or mesh.size == 1:
        return tree
    present = tuple(name for name in axes if name in mesh.axis_names)
    sharding = NamedSharding(mesh, P(present) if present else P())
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, P())


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a global batch is cut."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def round_up(mesh: Mesh, batch_size: int) -> int:
    """The smallest global batch that is no smaller and divides over the mesh."""
    parts = batch_shards(mesh)
    return -(-batch_size // parts) * parts


def check_divides(mesh: Mesh, batch_size: int, field: str) -> None:
    """Raises `UserError` unless the global batch divides over the mesh."""
    parts = batch_shards(mesh)
    if batch_size % parts:
        raise UserError(
            f"config.{field}={batch_size} does not divide over {parts} devices "
            f"(mesh {dict(mesh.shape)}); the next sizes that do: "
            f"{batch_size // parts * parts or parts} and {(batch_size // parts + 1) * parts}"
        )


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process' rows of a global batch as globally sharded arrays."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def whole(rows: Any, mesh: Mesh) -> jax.Array:
    """This process' rows of a global array as one with a copy on every device."""
    return _replicate(mesh)(put_batch({"rows": rows}, mesh)["rows"])


@functools.lru_cache
def _replicate(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda rows: rows, out_shardings=replicated(mesh))


def put_replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """Host arrays, equal on all processes, as arrays with a copy on every device."""
    sharding = replicated(mesh)

    def put(x: Any) -> jax.Array:
        host = np.asarray(jax.device_get(x))
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree)


def of_first_process(array: np.ndarray) -> np.ndarray:
    """The array of process 0, on all of them; others may have one of another length."""
    if jax.process_count() == 1:
        return array
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(array))))
    if jax.process_index():
        array = np.zeros((length, *array.shape[1:]), array.dtype)
    return np.array(multihost_utils.broadcast_one_to_all(array))  # a copy may be written to


def fetch(tree: PyTree) -> PyTree:
    """Replicated arrays as host arrays; works where other processes own devices too."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), tree)
