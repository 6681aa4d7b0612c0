"""Texts of others, such as names of files, as lines of a terminal."""

from __future__ import annotations

import re

# Control characters, separators of lines, half characters, and what turns the direction of a line.
_ACTING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]"
)


def visible(text: object, limit: int = 120) -> str:
    """A text on one line, as it is but for what a terminal would act on, which is escaped."""
    cut = str(text)
    cut = cut if len(cut) <= limit else f"{cut[:limit]}..."
    return _ACTING.sub(lambda match: ascii(match[0])[1:-1], cut)


def count_of(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
