"""The command in a forked child: as fast to start as it is to import once.

Children of multiprocessing's forkserver begin with everything imported and no JAX backend; each is
a process of its own, to be limited or killed. `small_run` uses it.
"""

from __future__ import annotations

import os
import resource
import runpy
import sys

import jax

import uniadapter_jax.run  # noqa: F401 (imported once, in the server)


def run_main(
    argv: list[str],
    environment: dict[str, str],
    cwd: str,
    log: str,
    *,
    largest_file: int | None = None,
    log_compiles: bool = False,
) -> None:
    """`python -m uniadapter_jax.main ARGV`; both output streams go to `log`.

    largest_file: bytes, as `ulimit -f` limits them.
    """
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
    sys.argv = ["main", *argv]
    runpy.run_module("uniadapter_jax.main", run_name="__main__")
