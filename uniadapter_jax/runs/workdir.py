"""A lock on a directory, so that one command at a time works in it.

The file `lock` exists while a command works in the directory, and names the command, its host, its
process and its start. Two mechanisms enforce it.

- flock: the kernel of a machine, or a network file system with locks, gives it to one process, and
  releases it when that process dies, even by kill -9.
- a lease, for hosts whose file system does not share flock: the holder touches the file every
  `BEAT` seconds. Another host waits until it sees a beat, and refuses, or until `STALE` seconds
  have passed without one, and takes over. It only looks whether the file changes, not at clocks.

A holder that was suspended for so long that its file has been replaced ends at once. On a file
system without shared flock and without exclusive creation of files (NFS has it since version 3),
two hosts that start within a second may both get the lock.

In a run of several processes the first holds the lock for all.
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
_BOOT = pathlib.Path("/proc/sys/kernel/random/boot_id")  # Linux only
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class InUse(UserError):
    """Another process works in the directory."""


class Holder(NamedTuple):
    """The process that works in a directory, as its lock file says."""

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
        """This process as a holder since now."""
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        return cls(command, socket.gethostname(), os.getpid(), now, _boot(), uuid.uuid4().hex)


def _boot() -> str:
    """An id of this boot of this machine; without `/proc` the host's name."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return socket.gethostname()


@contextlib.contextmanager
def holding(directory: str | os.PathLike[str], command: str) -> Iterator[None]:
    """Keeps other processes out of the directory, which is made if need be.

    Args:
      command: name of the work, shown to people, such as "training".

    Raises:
      InUse: another process works there, which the message names. Nothing has been changed.
      UserError: the directory cannot be written.
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
        if os.getpid() == me.pid:  # a child forked inside does not hold the lock
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
    """Opens the lock file and makes it this process' own."""
    while True:
        with disk_errors(path.parent):
            _make(path.parent)
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


def _make(directory: pathlib.Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # below /proc, or below a link to nowhere
        raise UserError(f"{directory} cannot be made there; choose another directory") from error


def _open(path: pathlib.Path) -> int:
    """Opens the lock file; refuses a link, whose target would be overwritten."""
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
    """Claims the open lock file; returns False if its holder has just removed it."""
    taken = _take(descriptor, fcntl.LOCK_EX)
    holder = _read(descriptor)
    if taken is not False and not _is_at(path, descriptor):
        return False
    if taken is False or _lives_elsewhere(path, holder, taken):
        raise _held(path, holder)
    with disk_errors(path.parent):
        _write(descriptor, me)
    if holder is not None and holder.boot != me.boot:
        time.sleep(min(1.0, BEAT))  # two hosts may have found the same dead holder
        if (now := _read(descriptor)) is None or now.token != me.token:
            raise _held(path, now)
    return True


def _held(path: pathlib.Path, holder: Holder | None) -> InUse:
    who = str(holder) if holder else "a process that has not yet said which it is"
    return InUse(
        f"{path.parent} is in use by {who}. Nothing was changed. Wait until it has ended, stop it, "
        "or choose another directory"
    )


def _take(descriptor: int, how: int) -> bool | None:
    """Tries to lock; returns whether it worked, None where the file system has no locks."""
    for wait in (0.1, 0.2, 0.0):  # `check_free` holds it for a moment
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
    """Whether a holder on another host is at work; waits for a beat of its lease."""
    if holder is None or (taken and holder.boot == _boot()):  # it was on this machine and has died
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
    """The time of the last beat; opens the file, because network file systems cache its status."""
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
    except OSError:  # not writable: a reader uses its own clock
        return time.time()
    finally:
        probe.unlink(missing_ok=True)


def _is_at(path: pathlib.Path, descriptor: int) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> Holder | None:
    """The holder that the file names; None if it is empty or unreadable."""
    try:
        fields: Any = json.loads(os.pread(descriptor, _LARGEST, 0))
        texts = {name: str(fields[name])[:200] for name in ("command", "host", "since", "boot")}
        return Holder(**texts, pid=int(fields["pid"]), token=str(fields.get("token")))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError):
        return None


def _write(descriptor: int, me: Holder) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(me._asdict()) + "\n").encode(), 0)
    os.fsync(descriptor)


def _beat(path: pathlib.Path, descriptor: int, ended: threading.Event) -> None:
    """Touches the file every few seconds until the holder ends or has lost the lock."""
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):  # a file system may be unreachable for a while
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
    """Closes the lock files, so that a forked child does not hold them after this process ends."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_close_in_child)
