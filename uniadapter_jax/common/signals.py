"""Ends a command on SIGINT or SIGTERM with one line and a status; on a second signal at once.

Python runs a handler only between two of its instructions, so a command inside a compiler or a
decoder would not notice a signal for minutes. Therefore a thread notices each signal at once, and
ends the process if the command does not, unless that would lose something. All files are written
atomically, so that a command may end anywhere.
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
GRACE_SECONDS = 3.0  # time for a command to end by itself

_leaving = threading.Lock()  # never released
_received: list[int] = []  # signals that our handlers got in this process
_nothing_unsaved: Callable[[], bool] | None = None
_waiting: list[tuple[int, Callable[[int, Any], None]]] | None = None  # set inside `_deferred`
CHILDREN: set[Any] = set()  # processes that `common.children` started


def receive(number: int, handler: Callable[[int, Any], None]) -> bool:
    """To be called first by handlers; False if the handler is to return and is called later."""
    if _waiting is not None:
        _waiting.append((number, handler))
        return False
    _received.append(number)
    return True


def status() -> int:
    """The exit status of a run that a signal stopped and that resumes when started again.

    It is 130 after SIGINT, as shells expect, and 0 after SIGTERM, by which schedulers stop jobs.
    """
    return 130 if signal.SIGINT in _received else 0


@contextlib.contextmanager
def unsaved(nothing: Callable[[], bool]) -> Iterator[None]:
    """Keeps the process from being ended while `nothing()` is False: for runs that resume."""
    global _nothing_unsaved
    before, _nothing_unsaved = _nothing_unsaved, nothing
    try:
        yield
    finally:
        _nothing_unsaved = before


STOPPED = "stopped; no file is half-written. Run the same command to go on."


def run(command: Callable[[], int | None], stopped: str = STOPPED) -> int | None:
    """Runs a command in the main thread: the first signal raises KeyboardInterrupt in it.

    If the command does not catch it, it ends with the line `stopped` and status 128 + the signal's
    number.
    """
    if threading.current_thread() is not threading.main_thread():
        return command()
    before = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    try:
        with _watching():
            return command()
    except KeyboardInterrupt:
        number = _received[-1] if _received else signal.SIGINT
        leave(128 + number, stopped)
    finally:
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        if signal.getsignal(signal.SIGTERM) is _interrupt:  # with several processes it is JAX's
            signal.signal(signal.SIGTERM, before[signal.SIGTERM])
    return None


def end_quietly_while_importing() -> None:
    """Until `run` begins, SIGINT ends the process with its status and without a traceback."""
    signal.signal(signal.SIGINT, lambda *_: leave(130, "stopped before it began."))


def _interrupt(number: int, frame: Any) -> None:
    if receive(number, _interrupt):
        raise KeyboardInterrupt


def leave(status: int, message: str = "") -> None:
    """Ends the process without the interpreter's shutdown.

    During that, threads of XLA that still compile would crash.
    """
    if not _leaving.acquire(blocking=False):
        time.sleep(0.1)  # time for the other thread to print its line
        os._exit(status)
    if processes := sys.modules.get("multiprocessing"):  # else there are no children
        for child in processes.active_children():
            child.kill()
    for started in list(CHILDREN):
        started.kill()
    with contextlib.suppress(OSError):  # e.g. a pipe that nobody reads any more
        if message:
            print(message, file=sys.stderr)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


@contextlib.contextmanager
def _watching() -> Iterator[None]:
    """Runs a thread that notices every signal at once."""
    writer, reader = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()  # ends the thread


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
                _received.append(first)  # its handler has not run
                if _nothing_unsaved is None:
                    leave(128 + first, "stopped; no file is half-written.")
                elif _nothing_unsaved():
                    leave(status(), "stopped; no training step is lost.")


def _next(wakeups: socket.socket) -> int:
    """The next signal that ends a command, 0 after the last."""
    while number := wakeups.recv(1):
        if number[0] in SIGNALS:
            return number[0]
    return 0


@contextlib.contextmanager
def hidden_from_children() -> Iterator[None]:
    """Keeps SIGINT, which a terminal sends to all processes of a command, from new children.

    They end with their parent (see `data.child`). Signals to this process wait for the end of the
    block: during a start they would leave a child that reads from a closed pipe.
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
    """Defers our handlers to the end of the block, as a blocked signal still reaches other threads.

    Handlers are not replaced: that would remove JAX's, which Python does not know of.
    """
    global _waiting
    if threading.current_thread() is not threading.main_thread() or _waiting is not None:
        yield
        return
    deferred: list[tuple[int, Callable[[int, Any], None]]] = []
    _waiting = deferred
    try:
        yield
    finally:
        _waiting = None
        for number, handler in deferred:
            handler(number, None)
