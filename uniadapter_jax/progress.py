"""A progress line with rate and ETA."""

from __future__ import annotations

import sys
import time

import jax

from uniadapter_jax.preemption import pass_by


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def say(message: str) -> None:
    """A line for people, on stderr, from the first process only."""
    if jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)


class Progress:
    """Says how far a long piece of work is, at most every few seconds; all processes do the same.

    SIGTERM ends it here if it may be left (see `preemption`).
    """

    def __init__(self, label: str, total: int, unit: str, every: float = 10.0):
        self.label, self.total, self.unit, self.every = label, total, unit, every
        self.start = self.last = time.monotonic()
        self.done = 0

    def advance(self, count: int) -> None:
        """`count` more items are done."""
        pass_by()
        self.done += count
        now = time.monotonic()
        if now - self.last < self.every or self.done >= self.total:
            return
        self.last = now
        rate = self.done / (now - self.start)
        eta = duration((self.total - self.done) / rate)
        say(f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:.1f}/s, ETA {eta}")
