"""The command in a forked child: as fast to start as it is to import once.

Children of multiprocessing's forkserver begin with everything imported and no JAX backend; each is
a process of its own, to be limited or killed. `small_run` uses it.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import os
import resource
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import grain  # noqa: F401 (as below: children begin with it)
import jax
import numpy as np
import tensorflow_datasets  # noqa: F401
from jax.sharding import Mesh

import uniadapter_jax.prepare
import uniadapter_jax.runs.run  # noqa: F401 (both are imported once, in the server)

# What was imported stays: no child's collector has to walk through it, or copies its pages.
gc.collect()
gc.freeze()
IMPORTED_BY = os.getpid()


def _assert_forked() -> None:
    assert os.getpid() != IMPORTED_BY, "the server did not import small_child: every child has to"


def call(module: str, function: str, arguments: tuple[Any, ...]) -> None:
    """`MODULE.FUNCTION(*ARGUMENTS)`."""
    _assert_forked()
    getattr(importlib.import_module(module), function)(*arguments)


def run_main(
    argv: list[str],
    environment: dict[str, str],
    cwd: str,
    log: str,
    *,
    module: str = "uniadapter_jax.main",
    largest_file: int | None = None,
    log_compiles: bool = False,
    die: tuple[str, int] | None = None,
    order: Sequence[int] | None = None,
) -> None:
    """`python -m MODULE ARGV`; both output streams go to `log`.

    largest_file: bytes, as `ulimit -f` limits them.
    die: (directory, n): SIGKILL comes just before the n-th change of what lies there.
    order: of the devices along every mesh, by their numbers in `jax.devices()`; fake devices come
      process by process otherwise, while JAX lets the hosts of most TPU slices interleave.
    """
    _assert_forked()
    os.chdir(cwd)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    # JAX read its variables when the server imported it.
    jax.config.update("jax_compilation_cache_dir", environment["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_log_compiles", log_compiles)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if die is not None:
        sys.addaudithook(die_at(*die))
    if order is not None:
        _permute(order)
    sys.argv = [module.rpartition(".")[2], *argv]
    runpy.run_module(module, run_name="__main__")


_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}


def die_at(directory: str, number: int) -> Callable[[str, tuple], None]:
    """An audit hook that kills the process before the `number`-th change below `directory`.

    Changes are files opened for writing, and names made, moved and removed, by Python.
    """
    left = itertools.count(number - 1, -1)

    def hook(event: str, args: tuple) -> None:
        if event == "open":
            changes = bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        else:
            changes = event in _CHANGES
        below = changes and isinstance(args[0], str | os.PathLike)
        if below and os.path.abspath(args[0]).startswith(directory) and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def _permute(order: Sequence[int]) -> None:
    """Lets `jax.make_mesh` put its devices in this order, as it does by the links of a TPU."""

    def make_mesh(shape, names, *, axis_types, devices):
        ordered = np.array([devices[i] for i in order])
        return Mesh(ordered.reshape(shape), names, axis_types=axis_types)

    jax.make_mesh = make_mesh
