"""The errors of the readers of foreign weights."""

from __future__ import annotations

import os

from uniadapter_jax.common.files import FileError


class WeightFileError(FileError):
    """A weight file that cannot be read, or must not be.

    Attributes:
      refused: `module.name` of the forbidden global, if that is the reason.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str, refused: str | None = None):
        super().__init__(path, reason)
        self.refused = refused


class Refused(Exception):
    """A reason not to read a file; raised where the file's path is not known."""

    def __init__(self, reason: str, name: str | None = None):
        super().__init__(reason)
        self.name = name


def printable(text: object, limit: int = 120) -> str:
    """Text out of a hostile file, safe to show on a terminal."""
    shown = str(text)[: limit + 1].encode("ascii", "backslashreplace").decode()
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)
    return shown if len(shown) <= limit else shown[:limit] + "..."
