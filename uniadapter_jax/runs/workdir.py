"""One command at a time works in a directory: its lock, and who holds it.

The file `lock` in the directory is there while a command works in it, and says which: host,
process, since when. Two things make it hold.

- flock: the kernel of a machine, and a network file system that knows locks, lets one process have
  it, and takes it away when that process dies, by kill -9 too.
- a lease, for hosts whose file system does not share flock: the holder touches the file every
  `BEAT` seconds. Another host waits until it sees a beat, and refuses, or until `STALE` seconds
  have gone without one, and takes over. Neither host's clock counts, only whether the file changes.

A holder that finds its file replaced, because it was suspended for so long, ends at once. Two hosts
that start within a second on a file system that neither shares flock nor creates a file for one
host only may both get in; NFS since version 3 does the latter.

Of a run of several processes the first holds the lock for all.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
import stat
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.errors import UserError

LOCK = "lock"
BEAT, STALE = 5.0, 45.0  # seconds
_LARGEST = 16 * 1024  # bytes of a lock file
_BOOT = pathlib.Path(
    "/proc/sys/kernel/random/boot_id"
)  # Linux; elsewhere the host's name has to do
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class Holder(NamedTuple):
    """Who works in a directory, as its lock file says."""

    command: str
    host: str
    pid: int
    since: str
    boot: str = ""
    token: str = ""

    def __str__(self) -> str:
        return f"{self.command}, process {self.pid} on {self.host}, since {self.since}"

    @classmethod
    def this_process(cls, command: str) -> Holder:
        """This process, now."""
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        return cls(command, socket.gethostname(), os.getpid(), now, _boot(), uuid.uuid4().hex)


def _boot() -> str:
    """What tells this start of this machine from all others."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return socket.gethostname()


@contextlib.contextmanager
def holding(directory: str | os.PathLike[str], command: str) -> Iterator[None]:
    """Within it no other process works in the directory, which is made if need be.

    Args:
      command: what works there, for people, such as "training".

    Raises:
      UserError: another process works there (who, where, since when), or nothing can be written
        there. Nothing was changed then.
    """
    path, me = pathlib.Path(directory) / LOCK, Holder.this_process(command)
    descriptor = _acquire(path, me)
    _HELD.add(descriptor)
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, descriptor, ended), daemon=True)
    beat.start()
    try:
        yield
    finally:
        if os.getpid() == me.pid:  # a child that was forked within has nothing to give back
            ended.set()
            beat.join()
            if _is_at(path, descriptor):
                path.unlink()
            _HELD.discard(descriptor)
            os.close(descriptor)


def check_free(directory: str | os.PathLike[str]) -> None:
    """Raises `UserError` if another process works in the directory; for commands that only read."""
    path = pathlib.Path(directory) / LOCK
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    try:
        holder, taken = _read(descriptor), _take(descriptor, fcntl.LOCK_SH)
        if taken is False or _lives_elsewhere(path, holder, taken):
            raise _held(path, holder)
    finally:
        os.close(descriptor)


def _acquire(path: pathlib.Path, me: Holder) -> int:
    """An open lock file that is this process'."""
    while True:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = _open(path)
            except FileNotFoundError:  # the directory was removed just now
                continue
        try:
            if _claim(path, descriptor, me):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open(path: pathlib.Path) -> int:
    """Only of a file in the directory itself: one that a link leads to would be written over."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    else:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    raise UserError(f"{path} is no regular file, so it cannot be locked; remove it")


def _claim(path: pathlib.Path, descriptor: int, me: Holder) -> bool:
    """Whether the open lock file is this process' now; False if its holder has just removed it."""
    taken = _take(descriptor, fcntl.LOCK_EX)
    holder = _read(descriptor)
    if taken is not False and not _is_at(path, descriptor):
        return False
    if taken is False or _lives_elsewhere(path, holder, taken):
        raise _held(path, holder)
    with disk_errors(path):
        _write(descriptor, me)
    if holder is not None and holder.boot != me.boot:
        time.sleep(min(1.0, BEAT))  # two hosts may have found the same dead one
        if (now := _read(descriptor)) is None or now.token != me.token:
            raise _held(path, now)
    return True


def _held(path: pathlib.Path, holder: Holder | None) -> UserError:
    who = str(holder) if holder else "a process that has not yet said which it is"
    return UserError(
        f"{path.parent} is in use by {who}. Nothing was changed. Wait until it has ended, stop it, "
        "or choose another directory"
    )


def _take(descriptor: int, how: int) -> bool | None:
    """Whether this process has the lock now; None where the file system knows no locks."""
    for wait in (0.1, 0.2, 0.0):  # a command that only looks has it for a moment
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(wait)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return None
            raise
    return False


def _lives_elsewhere(path: pathlib.Path, holder: Holder | None, taken: bool | None) -> bool:
    """Whether a holder that flock does not know of is at work; waits for a sign of life."""
    if holder is None or (taken and holder.boot == _boot()):  # of this machine: it has died
        return False
    last, began = _beats(path), time.monotonic()
    if last is None or _now(path) - last > STALE:
        return False
    print(
        f"{path.parent} was in use by {holder}; looking for {STALE:.0f} s whether it still is",
        file=sys.stderr,
        flush=True,
    )
    while time.monotonic() - began < STALE:
        time.sleep(min(1.0, BEAT))
        seen = _beats(path)
        if seen is None:
            return False
        if seen != last:
            return True
    return False


def _beats(path: pathlib.Path) -> float | None:
    """When the file was touched last; opened anew, because network file systems cache the rest."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)


def _now(path: pathlib.Path) -> float:
    """The time by the file system's clock."""
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with probe.open("w") as file:
            file.write("now")
        return probe.stat().st_mtime
    except OSError:  # nothing can be written: for a reader its own clock has to do
        return time.time()
    finally:
        probe.unlink(missing_ok=True)


def _is_at(path: pathlib.Path, descriptor: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> Holder | None:
    """Who the file says holds it; None for an empty or unreadable one."""
    try:
        said: Any = json.loads(os.pread(descriptor, _LARGEST, 0))
        texts = {name: str(said[name])[:200] for name in ("command", "host", "since", "boot")}
        return Holder(**texts, pid=int(said["pid"]), token=str(said.get("token")))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError):
        return None


def _write(descriptor: int, me: Holder) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(me._asdict()) + "\n").encode(), 0)
    os.fsync(descriptor)


def _beat(path: pathlib.Path, descriptor: int, ended: threading.Event) -> None:
    """Says every few seconds that the holder lives, until it ends or has lost the lock."""
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):  # a file system that is away for a while
            os.utime(descriptor)
            if path.exists() and not _is_at(path, descriptor):
                print(
                    f"error: {path} is another process' now: this one was away for so long that "
                    "it was taken for dead. It ends, and writes nothing more",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)


_HELD: set[int] = set()  # open lock files of this process


def _close_in_child() -> None:
    """A child that is forked must not hold a lock longer than this process."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_close_in_child)
