"""A directory that gets its name when it is complete, or never exists."""

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

    It is `.NAME.partial` until then, beside `.NAME.lock`. The next process that makes NAME removes
    what a killed one has left of both; one that is alive is let alone.

    Raises:
      UserError: there is something of that name already, another process is making it, or nothing
        can be written there.
    """
    target = pathlib.Path(os.path.realpath(directory))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target) as alone:
            made = target.with_name(f".{target.name}.partial")
            if alone:
                _remove(made)
            if target.exists() and not (target.is_dir() and not any(target.iterdir())):
                raise UserError(f"{directory} exists and is not empty; choose another directory")
            if alone:
                made.mkdir()
            else:
                made = pathlib.Path(tempfile.mkdtemp(prefix=f"{made.name}.", dir=made.parent))
            try:
                yield made
                _sync(made)
                os.rename(made, target)  # also over an empty directory
                sync_directory(target.parent)
            finally:
                _remove(made)
    except OSError as error:
        where = directory if error.filename is None else error.filename
        raise UserError(f"{where}: {error.strerror or error}") from error


@contextlib.contextmanager
def _alone(target: pathlib.Path) -> Iterator[bool]:
    """Holds the lock of `target`; False where the file system knows no locks.

    The system lets go of a process' lock when it ends, however it ends.
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
        if _is_open(path, lock):  # else its last holder has removed it in between
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
    """Makes all that lies in `directory` last through a power cut."""
    for place in [directory, *directory.rglob("*")]:
        sync_directory(place)
