"""A progress line with rate and ETA."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

FEWEST = 2  # items from which a rate and a remaining time can be computed


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss; hours go on beyond 24."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """Reports the progress of long work, at most every few seconds.

    Args:
      total: number of items; `kept` of them were done before.
      write: prints a line.
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
        self.done = 0  # items done by this process
        self.note = ""  # end of the line

    def advance(self, count: int) -> None:
        """Counts `count` more items as done; a negative count takes items back."""
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
    """Writes a line to stderr; on a terminal the next one replaces it."""
    if sys.stderr.isatty():
        print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)
