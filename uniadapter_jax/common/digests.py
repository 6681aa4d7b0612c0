"""`digests.json`: the SHA-256 of the files beside it, which shows whether one has changed."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Iterable

from uniadapter_jax.common.files import FileError, open_regular, read_json, write_json

DIGESTS_FILE = "digests.json"
MOST_BYTES = 2**26  # bytes of a listed file (configs, tokenizers); hashed in 0.1 s
_LIST_BYTES = 2**20

AnyPath = str | os.PathLike[str]


def file_digest(path: AnyPath) -> str:
    """The SHA-256 of a regular file in hexadecimal; raises the errors of `read_bytes`."""
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > MOST_BYTES:
            raise FileError(path, f"has {size:,} bytes, more than {MOST_BYTES:,}")
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_digests(directory: AnyPath, names: Iterable[str]) -> None:
    """Writes the list for the existing files `names` of `directory`."""
    root = pathlib.Path(directory)
    listed = sorted(set(names) - {DIGESTS_FILE})
    write_json(root / DIGESTS_FILE, {name: file_digest(root / name) for name in listed})


def check_digests(directory: AnyPath) -> None:
    """Compares the files of `directory` with its list; without a list nothing is checked.

    Raises:
      FileError: a file is missing or has changed, or the list is damaged.
    """
    root = pathlib.Path(directory)
    path = root / DIGESTS_FILE
    if not os.path.lexists(path):
        return
    try:
        listed = read_json(path, limit=_LIST_BYTES)
    except FileNotFoundError:
        raise FileError(path, "is a link to nothing") from None
    for name, expected in listed.items():
        if not _is_plain(name) or not isinstance(expected, str):
            raise FileError(path, f"is damaged: {name[:80]!r} is no file name with a SHA-256")
        advice = f"make {root} again, or delete {DIGESTS_FILE} if the change was meant"
        try:
            digest = file_digest(root / name)
        except FileNotFoundError:
            raise FileError(root / name, f"is missing, {path} lists it; {advice}") from None
        if digest != expected:
            reason = f"has changed since it was written: its SHA-256 is {digest}, {DIGESTS_FILE} "
            raise FileError(root / name, f"{reason}says {expected[:80]!r}; {advice}")


def _is_plain(name: str) -> bool:
    return name.isprintable() and os.path.basename(name) == name not in ("", ".", "..")
