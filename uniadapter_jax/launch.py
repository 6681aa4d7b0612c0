"""Starting JAX: several processes, and the cache of compiled programs."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from uniadapter_jax.errors import UserError

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, for several processes outside TPU VMs and Slurm."
)
_PROCESSES = flags.DEFINE_integer("num-processes", None, "How many processes there are.")
_INDEX = flags.DEFINE_integer("process-id", None, "Which one this is, from 0.")
_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed", False, "Several hosts that JAX finds by itself (TPU pods, Slurm, GKE)."
)
# After an error: how long a process waits at its end for others, which may be waiting for it.
_SHUTDOWN_SECONDS = 10

_TIMEOUT = flags.DEFINE_integer("initialization-timeout", 300, "Seconds to wait for processes.")


def start_processes() -> None:
    """`jax.distributed.initialize` as the flags say; before anything else touches a device."""
    given = [_COORDINATOR.value, _PROCESSES.value, _INDEX.value]
    if all(value is None for value in given):
        if _DISTRIBUTED.value:
            jax.distributed.initialize(
                initialization_timeout=_TIMEOUT.value,
                shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            )
        return
    if any(value is None for value in given):
        raise UserError("--coordinator, --num-processes and --process-id belong together")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        _COORDINATOR.value,
        _PROCESSES.value,
        _INDEX.value,
        initialization_timeout=_TIMEOUT.value,
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )


def end_processes() -> None:
    """Waits until every process has done its work."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("end")


def exchange(value: Any) -> list[Any]:
    """The JSON value of each process, on all of them."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([text.size]))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: text.size] = text
    texts = multihost_utils.process_allgather(padded).reshape(jax.process_count(), -1)
    return [
        json.loads(row[: int(size)].tobytes())
        for row, size in zip(texts, sizes.ravel(), strict=True)
    ]


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
