"""Opens files of an index, and no others: those that are where they were, and as they were."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from typing import BinaryIO

from uniadapter_jax.inference.search.index import Index, Item
from uniadapter_jax.inference.search.parts import Stamp
from uniadapter_jax.inference.serving.answers import Problem

_AGAIN = "index the folder again, and restart this server"
_LINKS = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)


def open_indexed(index: Index, item: Item) -> BinaryIO:
    """The file of a clip, unbuffered.

    Raises:
      Problem: it is gone, has changed since it was indexed, or a link leads to it.
    """
    try:
        file = open(_descriptor(index.root, item.name), "rb", buffering=0)
    except FileNotFoundError:
        raise Problem(410, f"The file is no longer there; {_AGAIN}.") from None
    except OSError as error:
        if error.errno in _LINKS:
            raise Problem(403, "A link leads to the file; links are not served.") from None
        raise Problem(403, f"The file cannot be read: {error.strerror}.") from None
    try:
        _check(file, index.stamp(item))
    except BaseException:
        file.close()
        raise
    return file


def _descriptor(root: str, name: str) -> int:
    """Opens a path below a folder step by step; the kernel refuses a link at each."""
    *folders, last = name.split(os.sep)
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.ExitStack() as opened:
        opened.callback(os.close, here)
        for folder in folders:
            here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            opened.callback(os.close, here)
        # Without O_NONBLOCK, a pipe in the file's place would wait for a writer.
        found = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
    if stat.S_ISREG(os.fstat(found).st_mode):
        return found
    os.close(found)
    raise _changed()


def _check(file: BinaryIO, stamp: Stamp) -> None:
    status = os.fstat(file.fileno())
    if status.st_size != stamp.size:
        raise _changed()
    if status.st_mtime_ns != stamp.mtime_ns and _digest(file, status) != stamp.digest:
        raise _changed()


def _changed() -> Problem:
    return Problem(409, f"The file has changed since it was indexed; {_AGAIN}.")


_DIGESTS: dict[tuple[int, ...], str] = {}  # by what tells that a file is the same
_MOST_DIGESTS = 10_000


def _digest(file: BinaryIO, status: os.stat_result) -> str:
    """The SHA-256 of a file, computed once as long as it is the same."""
    seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if seen not in _DIGESTS:
        if len(_DIGESTS) >= _MOST_DIGESTS:
            _DIGESTS.clear()
        _DIGESTS[seen] = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        file.seek(0)
    return _DIGESTS[seen]
