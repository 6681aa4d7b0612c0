"""What disks, copies and people do to files: bits flip, ends and files and folders go missing."""

from __future__ import annotations

import pathlib
import shutil

import numpy as np


def damage(place: pathlib.Path, rng: np.random.Generator, *, folders: bool = True) -> str:
    """Harms one file of `place`, a file or a directory, at random; says which, and how.

    folders: whether a whole directory may go, too.
    """
    if place.is_file():
        return harm(place, str(rng.choice(["flip", "bytes", "cut", "delete"])), rng)
    paths = sorted(path for path in place.rglob("*") if path.is_file() or folders)
    path = paths[rng.integers(len(paths))]
    if path.is_dir():
        shutil.rmtree(path)
        return f"{path.relative_to(place)}: directory deleted"
    kind = str(rng.choice(["flip", "bytes", "cut", "delete"]))
    return harm(path, kind, rng, str(path.relative_to(place)))


def harm(path: pathlib.Path, kind: str, rng: np.random.Generator, name: str = "") -> str:
    """One bit, up to 16 bytes, the end of the file, or all of it."""
    name = name or path.name
    content = bytearray(path.read_bytes())
    if kind == "delete" or not content:
        path.unlink()
        return f"{name}: deleted"
    at = int(rng.integers(len(content)))
    if kind == "flip":
        content[at] ^= 1 << int(rng.integers(8))
    elif kind == "bytes":
        # Zeros, as a disk leaves them, or anything.
        size = int(rng.integers(1, 17))
        new = bytes(size) if rng.random() < 0.3 else rng.bytes(size)
        harmed = new[: len(content) - at]
        if harmed == content[at : at + size]:  # zeros over zeros are no harm
            harmed = bytes(byte ^ 1 for byte in harmed)
        content[at : at + size] = harmed
    else:
        del content[at:]
    path.write_bytes(content)
    return f"{name}: {kind} at {at}"
