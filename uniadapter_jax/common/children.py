"""Starts other commands, which end with this one."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from uniadapter_jax.common import signals


@contextlib.contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen]:
    """Runs a command inside the block, and kills it at the end if it is still running.

    It does not get SIGINT, which a terminal sends to both, so that only this process reports it.
    """
    with signals.hidden_from_children():
        process = subprocess.Popen(command, **options)
        signals.CHILDREN.add(process)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        signals.CHILDREN.discard(process)


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess:
    """`subprocess.run` with a command that ends with this process; see `started`."""
    with started(command, **options) as process:
        output = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, *output)
