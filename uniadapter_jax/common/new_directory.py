"""A new directory that appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import sync_directory


@contextlib.contextmanager
def new_directory(directory: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A directory to fill, which gets its name when it is complete and vanishes otherwise.

    Until then it is `.NAME.partial`, beside `.NAME.lock`. The next process that makes NAME removes
    both if a killed process left them, but not those of a running one.

    Raises:
      UserError: NAME exists and is not empty, another process is making it, or it cannot be
        written.
    """
    target = pathlib.Path(os.path.realpath(directory))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target) as alone:
            filled = target.with_name(f".{target.name}.partial")
            if alone:
                _remove(filled)
            if target.exists() and not (target.is_dir() and not any(target.iterdir())):
                raise UserError(f"{directory} exists and is not empty; choose another directory")
            if alone:
                filled.mkdir()
            else:
                filled = pathlib.Path(tempfile.mkdtemp(prefix=f"{filled.name}.", dir=filled.parent))
            try:
                yield filled
                _sync(filled)
                os.rename(filled, target)  # also over an empty directory
                sync_directory(target.parent)
            finally:
                _remove(filled)
    except OSError as error:
        raise UserError(f"{_named(error, directory, target)}: {error.strerror or error}") from error


def _named(error: OSError, directory: str | os.PathLike[str], target: pathlib.Path) -> str:
    """The file that an error is about; the target for what lies beside it, which nobody typed."""
    path = directory if error.filename is None else error.filename
    return os.fspath(directory if pathlib.Path(path).parent == target.parent else path)


@contextlib.contextmanager
def _alone(target: pathlib.Path) -> Iterator[bool]:
    """Holds the lock of `target`; yields False if the file system has no locks.

    The system releases the lock of a process that ends, for whatever reason.
    """
    path = target.with_name(f".{target.name}.lock")
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 200).decode("ascii", "replace").strip() or "another process"
            os.close(lock)
            raise UserError(
                f"{target} is being made by {holder}; wait for that, or choose another directory"
            ) from None
        except OSError:
            os.close(lock)
            path.unlink(missing_ok=True)
            yield False
            return
        if _is_open(path, lock):  # else its last holder has just removed it
            break
        os.close(lock)
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, _me().encode("ascii", "replace"), 0)
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _me() -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}\n"


def _is_open(path: pathlib.Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove(place: pathlib.Path) -> None:
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif place.exists():
        shutil.rmtree(place)


def _sync(directory: pathlib.Path) -> None:
    """Makes everything in `directory` survive a power cut."""
    for place in [directory, *directory.rglob("*")]:
        sync_directory(place)
