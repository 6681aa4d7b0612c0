"""A progress line with rate and ETA."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

FEWEST = 2  # items from which a rate, and a time left, can be told


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss; hours go on beyond 24."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """Says how far a long piece of work is, at most every few seconds.

    Args:
      total: items of the work; `kept` of them were done before.
      write: takes a line.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str,
        *,
        every: float = 10.0,
        kept: int = 0,
        write: Callable[[str], None],
    ):
        self.label, self.total, self.unit = label, total, unit
        self.every, self.kept, self.write = every, kept, write
        self.start = self.last = time.monotonic()
        self.done = 0  # by this process
        self.note = ""  # ends the line

    def advance(self, count: int) -> None:
        """`count` more items are done; below 0 they were counted too early."""
        self.done += count
        now = time.monotonic()
        if now - self.last >= self.every and self.kept + self.done < self.total:
            self.show()

    def show(self) -> None:
        """Writes the line now."""
        self.last = time.monotonic()
        text = f"{self.label}: {self.kept + self.done}/{self.total} {self.unit}"
        if self.done >= FEWEST:
            rate = self.done / max(self.last - self.start, 1e-9)
            left = self.total - self.kept - self.done
            text += f", {rate:.1f}/s" + (f", ETA {duration(left / rate)}" if left else "")
        self.write(text + self.note)


def on_terminal(line: str) -> None:
    """Writes a line to stderr; on a terminal the next one takes its place."""
    if sys.stderr.isatty():
        print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)
