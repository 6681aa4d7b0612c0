"""Messages for people from a run of several processes: each line once."""

from __future__ import annotations

import sys

import jax

from uniadapter_jax.common import progress
from uniadapter_jax.common.progress import duration

__all__ = ["Progress", "duration", "say"]


def say(message: str) -> None:
    """Prints a line for people on stderr, on the first process only."""
    if jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)


class Progress(progress.Progress):
    """The progress of work that all processes share, printed by the first."""

    def __init__(self, label: str, total: int, unit: str, every: float = 10.0):
        super().__init__(label, total, unit, every=every, write=say)
