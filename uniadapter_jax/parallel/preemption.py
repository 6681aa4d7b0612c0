"""Stops a run on SIGTERM or SIGINT where nothing is lost, all processes at the same point.

With several processes JAX's own handler notes SIGTERM and agrees with the others on a point that
none has passed, so all have to pass the same points in the same order; SIGINT becomes a SIGTERM.
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
    """SIGTERM or SIGINT stopped the run; everything needed to go on is saved.

    A KeyboardInterrupt passes through `except Exception`, wherever it is raised.
    """


_points = itertools.count(1)  # numbers of points; they have to grow, so all work shares them
_may_leave = False


def leaving_on_signal() -> contextlib.AbstractContextManager[None]:
    """Makes a signal raise `Preempted`: for work that is repeated if it is not finished.

    With one process that happens at once, with several at the next `pass_by`.
    """
    return _handling(_leave, lambda: True, may_leave=True)


def noting_signal(
    handler: Callable[[], None], nothing_unsaved: Callable[[], bool]
) -> contextlib.AbstractContextManager[None]:
    """Calls `handler` on a signal if this is the only process: for work that calls `reached`.

    nothing_unsaved: whether the process may be ended if it does not react in time.
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
    """Reports the stop and ends the command; with several processes returns the status."""
    say(f"{stopped}. Run the same command to go on.")
    if jax.process_count() == 1:
        signals.leave(signals.status())
    return signals.status()


def reached() -> bool:
    """Whether all processes stop here; all of several processes have to call it."""
    return bool(multihost_utils.reached_preemption_sync_point(next(_points)))


def pass_by() -> None:
    """A point that all processes pass: stops if the work may be left and they agree."""
    if _may_leave and jax.process_count() > 1 and reached():
        _leave()


def _leave() -> None:
    raise Preempted("stopped; no training step is lost")
