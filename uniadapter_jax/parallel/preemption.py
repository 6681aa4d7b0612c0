"""A run that SIGTERM or SIGINT stops does so where nothing is lost, all processes at one point.

With several processes JAX's own handler notes SIGTERM and agrees with the others on a point that
none has passed, so all have to come by the same points in the same order; SIGINT is passed on to
it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from uniadapter_jax.common import signals
from uniadapter_jax.parallel.progress import say


class Preempted(KeyboardInterrupt):
    """SIGTERM or SIGINT came; what is needed to go on is saved.

    As a KeyboardInterrupt it passes through `except Exception`, wherever it is raised.
    """


_points = itertools.count(1)  # of this process; they have to grow, so one count serves all work
_may_leave = False


def leaving_on_signal() -> contextlib.AbstractContextManager[None]:
    """A signal raises `Preempted`: for work that is done again where it is not finished.

    With one process at once, with several at the next `pass_by`.
    """
    return _handling(_leave, lambda: True, may_leave=True)


def noting_signal(
    handler: Callable[[], None], nothing_unsaved: Callable[[], bool]
) -> contextlib.AbstractContextManager[None]:
    """Calls `handler` on a signal, where this is the only process: for work that asks `reached`.

    nothing_unsaved: whether the process may be ended should it not come to react.
    """
    return _handling(handler, nothing_unsaved, may_leave=False)


@contextlib.contextmanager
def _handling(
    handler: Callable[[], None], nothing_unsaved: Callable[[], bool], *, may_leave: bool
) -> Iterator[None]:
    global _may_leave
    before, _may_leave = _may_leave, may_leave
    several = jax.process_count() > 1

    def react(number: int, frame: Any) -> None:
        if not signals.receive(number, react):
            return
        if several:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            handler()

    kinds = [signal.SIGINT] if several else list(signals.SIGNALS)
    handled = kinds if threading.current_thread() is threading.main_thread() else []
    previous = {number: signal.signal(number, react) for number in handled}
    try:
        with signals.unsaved((lambda: False) if several else nothing_unsaved):
            yield
    finally:
        _may_leave = before
        for number, old in previous.items():
            signal.signal(number, old)


def end(stopped: Preempted) -> int:
    """Says that the command was stopped, and ends it; with several processes returns the status."""
    say(f"{stopped}. Run the same command to go on.")
    if jax.process_count() == 1:
        signals.leave(signals.status())
    return signals.status()


def reached() -> bool:
    """Whether all of several processes stop here; every call of one is a call of all."""
    return bool(multihost_utils.reached_preemption_sync_point(next(_points)))


def pass_by() -> None:
    """A point of work that all processes come by: stops there if it may be left, and they agree."""
    if _may_leave and jax.process_count() > 1 and reached():
        _leave()


def _leave() -> None:
    raise Preempted("stopped; no training step is lost")
