"""Turns failed writes into one error for all writers, with the free bytes of the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Iterator

from uniadapter_jax.common.errors import UserError

_FULL = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "quota exceeded",
    errno.EFBIG: "file size limit reached",
}
_REFUSED = {
    errno.EROFS: "read-only file system",
    errno.EACCES: "no permission",
    errno.EPERM: "not permitted",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "a file is in the way",
    errno.EISDIR: "a directory is in the way",
}
_REASONS = _FULL | _REFUSED
# tensorstore and ArrayRecord report the system's message, not its number.
_MESSAGES = {os.strerror(number): number for number in _REASONS}


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike[str], needed: int = 0) -> Iterator[None]:
    """Turns a failed write below `path` into a `UserError` with needed and free bytes."""
    try:
        yield
    except UserError:  # already says more
        raise
    except Exception as error:  # orbax wraps the system's error in several types of its own
        number = _number(error)
        if number is None:
            raise
        raise UserError(
            f"{os.fspath(path)}: cannot write: {_told(number, path, needed)}"
        ) from error


def _told(number: int, path: str | os.PathLike[str], needed: int) -> str:
    """What is wrong and what to do; a refusal has nothing to do with the free bytes."""
    untouched = "What was complete before is untouched"
    if number in _REFUSED:
        return f"{_REFUSED[number]}. {untouched}; choose another place, or mend this one"
    wanted = f"needed {needed:,} bytes or more, " if needed else ""
    return (
        f"{_FULL[number]} ({wanted}free {free_bytes(path):,}). {untouched}; make room and run the "
        "same command again"
    )


def _number(error: BaseException | None) -> int | None:
    """The number of the system's error that lies behind an error; None where none does."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _REASONS:
            return error.errno
        for message, number in _MESSAGES.items():
            if message in str(error):
                return number
        error = error.__cause__ or error.__context__
    return None


def free_bytes(path: str | os.PathLike[str]) -> int:
    """The free bytes on the file system of `path`, or of its first parent that exists."""
    place = pathlib.Path(path).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free
