"""The directory of unfinished work beside the records, `OUTPUT.work`.

lock      while a command assembles there; commands that decode a share do without
shards/   decoded clips
new/      records that are being assembled; they become OUTPUT by a rename
old/      the records that they replace, until they are removed
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.files import sync_directory
from uniadapter_jax.data.prepared import NAME

LOCK = "lock"
Hold = Callable[[str, str], AbstractContextManager[None]]


@contextlib.contextmanager
def work_directory(path: str, hold: Hold) -> Iterator[str]:
    """The directory for unfinished work; `hold` keeps other commands that assemble out of it."""
    with hold(path, "prepare"):
        yield path
    with contextlib.suppress(OSError):  # not empty: it has unfinished work
        os.rmdir(path)


def remove(path: str) -> None:
    """Removes a file or directory, if another command has not."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def empty(work: str) -> None:
    """Removes everything in a directory but the lock."""
    for entry in os.scandir(work):
        if entry.name != LOCK:
            remove(entry.path)


def clean(work: str) -> str:
    """Removes what killed commands of this host left half-written; returns the shards' place."""
    shards = os.path.join(work, "shards")
    with disk_errors(work):
        os.makedirs(shards, exist_ok=True)
        for entry in os.scandir(work):
            if entry.name not in (LOCK, "shards"):
                remove(entry.path)
        for entry in os.scandir(shards):
            if entry.name.endswith(".tmp") and not _is_written(entry.name):
                remove(entry.path)
    return shards


def _is_written(name: str) -> bool:
    """Whether the writer of a shard lives, as far as this host can know."""
    beginning, _, process = name.removesuffix(".tmp").rpartition(".")
    if not beginning.endswith(f".{socket.gethostname()}"):
        return bool(process)
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def publish(new: str, output: str, work: str) -> None:
    """Moves the finished directory to its place, where a half-written one never appears."""
    with disk_errors(output):
        if os.path.isdir(output):
            os.rename(output, os.path.join(work, "old"))
        os.rename(new, output)
        sync_directory(os.path.dirname(output))
        empty(work)


def needs_recovery(output: str, work: str) -> bool:
    """Whether a command was killed between the two renames of `publish`."""
    return not os.path.exists(output) and os.path.exists(os.path.join(work, "old", NAME))


def recover(output: str, work: str) -> None:
    """Puts the replaced records back, so that their frames are not lost."""
    if needs_recovery(output, work):
        with disk_errors(output):
            os.rename(os.path.join(work, "old"), output)
