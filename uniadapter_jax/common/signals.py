"""SIGINT and SIGTERM of a command: one line and a status; a second signal ends it at once.

Python runs a handler only between two steps of its own, so a command that is deep in a compiler or
a decoder would not hear of a signal for minutes. A thread therefore hears of each one at once, and
ends the process where the command does not, unless that would lose something. All files are
written whole or not at all, so that a command may end anywhere.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_SECONDS = 3.0  # in which a command ends by itself, before it is ended

_leaving = threading.Lock()  # never given back
_received: list[int] = []  # in this process, by handlers of ours
_nothing_unsaved: Callable[[], bool] | None = None
_waiting: list[tuple[int, Callable[[int, Any], None]]] | None = None  # handlers, amid `_deferred`
CHILDREN: set[Any] = set()  # processes that `common.children` started


def receive(number: int, handler: Callable[[int, Any], None]) -> bool:
    """Handlers call this first, with themselves; whether they go on, or are called again later."""
    if _waiting is not None:
        _waiting.append((number, handler))
        return False
    _received.append(number)
    return True


def status() -> int:
    """How a run ends that a signal stopped and that goes on when started again.

    130 after SIGINT, as shells expect; 0 after SIGTERM, with which schedulers stop what is well.
    """
    return 130 if signal.SIGINT in _received else 0


@contextlib.contextmanager
def unsaved(nothing: Callable[[], bool]) -> Iterator[None]:
    """For runs that go on: within it the process is not ended while `nothing()` is False."""
    global _nothing_unsaved
    before, _nothing_unsaved = _nothing_unsaved, nothing
    try:
        yield
    finally:
        _nothing_unsaved = before


def run(command: Callable[[], int | None]) -> int | None:
    """Runs a command in the main thread: the first signal raises KeyboardInterrupt in it.

    A command that lets that pass ends with one line and status 128 + the signal's number.
    """
    if threading.current_thread() is not threading.main_thread():
        return command()
    before = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    try:
        with _watching():
            return command()
    except KeyboardInterrupt:
        number = _received[-1] if _received else signal.SIGINT
        leave(128 + number, "stopped; no file is half-written. Run the same command to go on.")
    finally:
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        if signal.getsignal(signal.SIGTERM) is _interrupt:  # JAX has its own with several processes
            signal.signal(signal.SIGTERM, before[signal.SIGTERM])
    return None


def end_quietly_while_importing() -> None:
    """Until `run` begins, SIGINT ends the process with its status and without a traceback."""
    signal.signal(signal.SIGINT, lambda *_: leave(130, "stopped before it began."))


def _interrupt(number: int, frame: Any) -> None:
    if receive(number, _interrupt):
        raise KeyboardInterrupt


def leave(status: int, message: str = "") -> None:
    """Ends the process without the interpreter's own end.

    Threads of XLA that still compile would meet what that has taken down, and crash.
    """
    if not _leaving.acquire(blocking=False):
        time.sleep(0.1)  # in which the other thread says its line
        os._exit(status)
    if processes := sys.modules.get("multiprocessing"):  # else there are no children
        for child in processes.active_children():
            child.kill()
    for started in list(CHILDREN):
        started.kill()
    with contextlib.suppress(OSError):  # such as a pipe that nobody reads any more
        if message:
            print(message, file=sys.stderr)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


@contextlib.contextmanager
def _watching() -> Iterator[None]:
    """A thread that hears of every signal at once."""
    here, there = socket.socketpair()
    here.setblocking(False)
    before = signal.set_wakeup_fd(here.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(there,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        here.close()  # the thread ends


def _watch(wakeups: socket.socket) -> None:
    with wakeups:
        first = _next(wakeups)
        wakeups.settimeout(GRACE_SECONDS)
        while first:
            try:
                if second := _next(wakeups):
                    leave(128 + second, "ended at once.")
                return
            except TimeoutError:
                _received.append(first)  # its handler has not come to it
                if _nothing_unsaved is None:
                    leave(128 + first, "stopped; no file is half-written.")
                elif _nothing_unsaved():
                    leave(status(), "stopped; no training step is lost.")


def _next(wakeups: socket.socket) -> int:
    """The next signal that ends a command, 0 when there will be none."""
    while heard := wakeups.recv(1):
        if heard[0] in SIGNALS:
            return heard[0]
    return 0


@contextlib.contextmanager
def hidden_from_children() -> Iterator[None]:
    """Processes started within do not get SIGINT, which a terminal sends to all of a command's.

    They end with their parent (see `data.child`). A signal of this process waits for the end of
    the block: amid a start it would leave a child that reads from a closed pipe.
    """
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # otherwise the first start does, and unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _deferred():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _deferred() -> Iterator[None]:
    """Handlers of ours run at the end of the block; a blocked signal still reaches other threads.

    No handler is exchanged: that would take JAX's own away, which Python does not know of.
    """
    global _waiting
    if threading.current_thread() is not threading.main_thread() or _waiting is not None:
        yield
        return
    came: list[tuple[int, Callable[[int, Any], None]]] = []
    _waiting = came
    try:
        yield
    finally:
        _waiting = None
        for number, handler in came:
            handler(number, None)
