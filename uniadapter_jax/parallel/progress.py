"""What a run of several processes says to people: each line once."""

from __future__ import annotations

import sys

import jax

from uniadapter_jax.common import progress
from uniadapter_jax.common.progress import duration

__all__ = ["Progress", "duration", "say"]


def say(message: str) -> None:
    """A line for people, on stderr, from the first process only."""
    if jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)


class Progress(progress.Progress):
    """The progress of work that all processes do together, said by the first."""

    def __init__(self, label: str, total: int, unit: str, every: float = 10.0):
        super().__init__(label, total, unit, every=every, write=say)
