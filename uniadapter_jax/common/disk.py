"""Turns failed writes into one error for all writers, with the free bytes of the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Iterator

from uniadapter_jax.common.errors import UserError

_REASONS = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "quota exceeded",
    errno.EFBIG: "file size limit reached",
    errno.EROFS: "read-only file system",
    errno.EACCES: "no permission",
    errno.EPERM: "not permitted",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "a file is in the way",
    errno.EISDIR: "a directory is in the way",
}
# tensorstore and ArrayRecord report the system's message, not its number.
_MESSAGES = {os.strerror(number): reason for number, reason in _REASONS.items()}


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike[str], needed: int = 0) -> Iterator[None]:
    """Turns a failed write below `path` into a `UserError` with needed and free bytes."""
    try:
        yield
    except UserError:  # already says more
        raise
    except Exception as error:  # orbax wraps the system's error in several types of its own
        reason = _reason(error)
        if reason is None:
            raise
        wanted = f"needed {needed:,} bytes or more, " if needed else ""
        raise UserError(
            f"{os.fspath(path)}: cannot write: {reason} ({wanted}free {free_bytes(path):,}). What "
            "was complete before is untouched; make room and run the same command again"
        ) from error


def _reason(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _REASONS:
            return _REASONS[error.errno]
        for message, reason in _MESSAGES.items():
            if message in str(error):
                return reason
        error = error.__cause__ or error.__context__
    return None


def free_bytes(path: str | os.PathLike[str]) -> int:
    """The free bytes on the file system of `path`, or of its first parent that exists."""
    place = pathlib.Path(path).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free
