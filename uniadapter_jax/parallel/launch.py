"""Starting JAX: several processes, and the cache of compiled programs."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.parallel.peers import Peers, meet

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, for several processes outside TPU VMs and Slurm."
)
_PROCESSES = flags.DEFINE_integer("num-processes", None, "How many processes there are.")
_INDEX = flags.DEFINE_integer("process-id", None, "Which one this is, from 0.")
_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed", False, "Several hosts that JAX finds by itself (TPU pods, Slurm, GKE)."
)
_TIMEOUT = flags.DEFINE_integer("initialization-timeout", 300, "Seconds to wait for processes.")

# After an error: how long a process waits at its end for others, which may be waiting for it.
_SHUTDOWN_SECONDS = 10
# JAX's own watch, should ours not see a process go.
_HEARTBEAT_SECONDS = 45


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """All processes, as the flags say; before anything else touches a device.

    Within it a process that is gone, or fails alone, ends all others with a message and status 1.

    Raises:
      UserError: not all came (says which), process 0 does not answer, or the flags are wrong.
    """
    peers = _start()
    if peers is None:
        yield
        return
    peers.watch(_SHUTDOWN_SECONDS)
    try:
        yield
    except BaseException as error:
        # What a collective raises when a peer goes says less than who went.
        if not isinstance(error, UserError) and (reason := peers.lost(2)):
            peers.end(reason)
        peers.fail(str(error) or type(error).__name__)
        raise
    finally:
        peers.close()


def _start() -> Peers | None:
    """Meets the others and starts JAX on all of them; None if there is one process only."""
    address, count, index = _COORDINATOR.value, _PROCESSES.value, _INDEX.value
    devices = None
    if address is None and count is None and index is None:
        if not _DISTRIBUTED.value:
            return None
        address, count, index, devices = _detect()
    if address is None or count is None or index is None:
        raise UserError("--coordinator, --num-processes and --process-id belong together")
    if count == 1:
        return None
    peers = meet(address, index, count, _TIMEOUT.value)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        address,
        count,
        index,
        local_device_ids=devices,
        initialization_timeout=_TIMEOUT.value,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
    return peers


def _detect() -> tuple[str, int, int, Any]:
    """Coordinator, processes, this one and its devices, where JAX knows the kind of cluster."""
    from jax._src.clusters import ClusterEnv  # private: in public JAX finds them and keeps it

    address, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, _TIMEOUT.value
    )
    if address is None or count is None or index is None:
        raise UserError(
            "--distributed: this is no cluster that JAX knows (TPU VM, GKE, Slurm, Open MPI); say "
            "--coordinator=HOST:PORT, --num-processes and --process-id"
        )
    return address, count, index, devices


def end_processes() -> None:
    """Waits until every process has done its work."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("end")


def exchange(value: Any) -> list[Any]:
    """The JSON value of each process in the order of their numbers, on all of them."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = meshes.of_processes(np.array(text.size, np.int32))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: text.size] = text
    texts = meshes.of_processes(padded)
    return [json.loads(row[: int(size)].tobytes()) for row, size in zip(texts, sizes, strict=True)]


def use_compile_cache() -> None:
    """Keeps compiled programs of this user between runs, unless JAX was told where already."""
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    directory = pathlib.Path(root) / "uniadapter_jax" / "xla"
    try:
        # What lies there is executed: nobody else may write to it.
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return  # a read-only home costs compilations, nothing more
    jax.config.update("jax_compilation_cache_dir", str(directory))
