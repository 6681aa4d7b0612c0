"""Starts JAX on all processes, and sets its cache of compiled programs."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from uniadapter_jax.common.cores import share_cores
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

# How long a process that fails waits at its end for the others, which may be waiting for it.
_SHUTDOWN_SECONDS = 10
# JAX's own detection of dead processes, in case ours misses one.
_HEARTBEAT_SECONDS = 45


class Group(NamedTuple):
    """What a user says of several processes, as the flags above do."""

    coordinator: str | None
    processes: int | None
    rank: int | None
    distributed: bool
    timeout: int

    @classmethod
    def of_flags(cls) -> Group:
        """What absl's flags say."""
        return cls(
            _COORDINATOR.value,
            _PROCESSES.value,
            _INDEX.value,
            _DISTRIBUTED.value,
            _TIMEOUT.value,
        )

    @classmethod
    def of_arguments(cls, arguments: argparse.Namespace) -> Group:
        """What the arguments of `add_arguments` say."""
        return cls(
            arguments.coordinator,
            arguments.num_processes,
            arguments.process_id,
            arguments.distributed,
            arguments.initialization_timeout,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the same flags to a command without absl."""
    whole: dict[str, Any] = {"type": int}
    kinds: list[tuple[flags.FlagHolder[Any], dict[str, Any]]] = [
        *((flag, whole) for flag in (_PROCESSES, _INDEX, _TIMEOUT)),
        *((_COORDINATOR, {}), (_DISTRIBUTED, {"action": "store_true"})),
    ]
    for flag, kind in kinds:
        text = flags.FLAGS[flag.name].help
        parser.add_argument(f"--{flag.name}", default=flag.default, help=text, **kind)


@contextlib.contextmanager
def processes(group: Group | None = None) -> Iterator[None]:
    """Connects all processes of a group, by default absl's flags'; before any device is used.

    Inside, a process that dies or fails ends all others with a message and status 1.

    Raises:
      UserError: processes are missing (says which), process 0 does not answer, or the flags are
        wrong.
    """
    peers = _start(group or Group.of_flags())
    if peers is None:
        yield
        return
    share_cores(peers.on_this_host)
    peers.watch(_SHUTDOWN_SECONDS)
    try:
        yield
    except BaseException as error:
        # The error of a collective does not say which peer is gone.
        if not isinstance(error, UserError) and (reason := peers.lost(2)):
            peers.end(reason)
        peers.fail(str(error) or type(error).__name__)
        raise
    finally:
        peers.close()


def _start(group: Group) -> Peers | None:
    """Connects the processes and starts JAX on all of them; None if there is only one."""
    address, count, index, distributed, timeout = group
    devices = None
    if address is None and count is None and index is None:
        if not distributed:
            return None
        address, count, index, devices = _detect(timeout)
    if address is None or count is None or index is None:
        raise UserError("--coordinator, --num-processes and --process-id belong together")
    if count == 1:
        return None
    peers = meet(address, index, count, timeout)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        address,
        count,
        index,
        local_device_ids=devices,
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
    return peers


def _detect(timeout: int) -> tuple[str, int, int, Any]:
    """(coordinator, number of processes, index of this one, its devices) that JAX detects."""
    from jax._src.clusters import ClusterEnv  # private: the public function keeps the result

    address, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, timeout
    )
    if address is None or count is None or index is None:
        raise UserError(
            "--distributed: this is no cluster that JAX knows (TPU VM, GKE, Slurm, Open MPI); say "
            "--coordinator=HOST:PORT, --num-processes and --process-id"
        )
    return address, count, index, devices


def end_processes() -> None:
    """Waits until every process has finished its work."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("end")


def exchange(value: Any) -> list[Any]:
    """Gives every process the JSON values of all processes, in the order of their indices."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = meshes.of_processes(np.array(text.size, np.int32))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: text.size] = text
    texts = meshes.of_processes(padded)
    return [json.loads(row[: int(size)].tobytes()) for row, size in zip(texts, sizes, strict=True)]


def use_compile_cache() -> None:
    """Caches this user's compiled programs between runs, unless JAX has a cache directory set."""
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    directory = pathlib.Path(root) / "uniadapter_jax" / "xla"
    try:
        # The programs there are executed, so nobody else may write to it.
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return  # with a read-only home, programs are compiled again
    jax.config.update("jax_compilation_cache_dir", str(directory))
