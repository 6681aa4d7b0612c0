"""SIGTERM: whoever is asked to stop does so where nothing is lost, all processes at one point.

With several processes JAX's own handler notes the signal and agrees with the others on a point that
none has passed, so all have to come by the same points in the same order.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """SIGTERM came; what is needed to go on is saved."""


_points = itertools.count(1)  # of this process; they have to grow, so one count serves all work
_may_leave = False


def leaving_on_sigterm() -> contextlib.AbstractContextManager[None]:
    """SIGTERM raises `Preempted`: for work that is done again where it is not finished.

    With one process at once, with several at the next `pass_by`.
    """
    return _handling_sigterm(_leave, may_leave=True)


def noting_sigterm(handler: Callable[..., None]) -> contextlib.AbstractContextManager[None]:
    """Calls `handler` on SIGTERM, where this is the only process: for work that asks `reached`."""
    return _handling_sigterm(handler, may_leave=False)


@contextlib.contextmanager
def _handling_sigterm(handler: Callable[..., None], *, may_leave: bool) -> Iterator[None]:
    global _may_leave
    before, _may_leave = _may_leave, may_leave
    alone = jax.process_count() == 1
    previous = signal.signal(signal.SIGTERM, handler) if alone else None
    try:
        yield
    finally:
        _may_leave = before
        if alone:
            signal.signal(signal.SIGTERM, previous)


def reached() -> bool:
    """Whether all of several processes stop here; every call of one is a call of all."""
    return bool(multihost_utils.reached_preemption_sync_point(next(_points)))


def pass_by() -> None:
    """A point of work that all processes come by: stops there if it may be left, and they agree."""
    if _may_leave and jax.process_count() > 1 and reached():
        _leave()


def _leave(*_: Any) -> None:
    raise Preempted("stopped; no training step is lost")
