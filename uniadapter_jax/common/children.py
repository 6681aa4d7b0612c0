"""Other commands that a command starts, and that end with it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from uniadapter_jax.common import signals


@contextlib.contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen]:
    """Within it the command runs; it is killed at the end where it has not ended.

    It does not get SIGINT, which a terminal sends to both: one line is said, and by this process.
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
    """`subprocess.run`, likewise."""
    with started(command, **options) as process:
        said = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, *said)
