"""The progress of a download, in bytes."""

from __future__ import annotations

import sys
import time
from typing import Any

from uniadapter_jax.common.progress import duration, on_terminal

EVERY = 2.0  # seconds between two lines


def say(line: str) -> None:
    """Writes a line to stderr, which stays."""
    print(line, file=sys.stderr, flush=True)


class Bytes:
    """Shows how far the download of some files is."""

    def __init__(self, label: str, total: int):
        self.label, self.total, self.done = label, total, 0
        self._began = self._last = time.monotonic()

    @staticmethod
    def megabytes(size: int) -> str:
        """Bytes as MB, with a digit behind the point where there are few."""
        return f"{size / 1e6:,.0f}" if size >= 1e8 else f"{size / 1e6:.1f}"

    def begin(self, what: str) -> None:
        """Says what will be downloaded."""
        say(f"{self.label} of {what}")

    def advance(self, count: float) -> None:
        """Counts further bytes; a negative count takes some back."""
        self.done += int(count)
        now = time.monotonic()
        if self.total and now - self._last >= EVERY:
            self._last = now
            self._show(now)

    def end(self) -> None:
        """Says that all files are there."""
        self._show(time.monotonic())
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def _show(self, now: float) -> None:
        rate = self.done / max(now - self._began, 1e-9)
        left = max(0, self.total - self.done)
        line = f"{self.label} of {self.megabytes(self.total)} MB: {self.megabytes(self.done)} MB"
        line += f", {rate / 1e6:.1f} MB/s"
        on_terminal(line + (f", ETA {duration(left / max(rate, 1.0))}" if left else ""))

    def tqdm_class(self) -> type:
        """A bar for huggingface_hub, which shows nothing itself and counts here."""
        from huggingface_hub.utils import tqdm

        advance = self.advance

        class Counting(tqdm):
            def __init__(self, *arguments: Any, **options: Any):
                super().__init__(*arguments, **{**options, "disable": True})

            def update(self, n: float | None = 1) -> None:
                advance(n or 0)

        return Counting
