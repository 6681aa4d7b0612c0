"""Times of training steps that overlap with the making of batches and with each other.

The loop dispatches step n + 1 before it reads the numbers of step n, so its own clock says nothing
of a step. A thread notes when each step is done on the devices; what follows is exact:

    seconds of step n       from the end of step n - 1 to the end of step n, without what the loop
                            spent on checkpoints and evaluations in between; of the first step, from
                            the request for its batch. They sum up to the time of training.
    wait_seconds of step n  the part of these in which the devices had nothing to do since the loop
                            was blocked waiting for the batch of step n. A wait behind a step that
                            still runs costs nothing, and does not count.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax

from uniadapter_jax.parallel.progress import duration

Clock = Callable[[], float]


class Took(NamedTuple):
    """Seconds of one step, and of these the wait for its batch."""

    seconds: float
    waited: float


class Watch:
    """Notes when results are on the devices. Its thread ends with `close`, or with the process."""

    def __init__(self, clock: Clock = time.monotonic):
        self._clock = clock
        self._jobs: queue.SimpleQueue[tuple[Any, Future[float]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="step times", daemon=True).start()

    def note(self, results: Any) -> Future[float]:
        """The time when `results` are there."""
        end: Future[float] = Future()
        self._jobs.put((results, end))
        return end

    def close(self) -> None:
        self._jobs.put(None)

    def _work(self) -> None:
        while job := self._jobs.get():
            results, end = job
            with contextlib.suppress(Exception):  # the loop meets it when it fetches them
                jax.block_until_ready(results)
            end.set_result(self._clock())
            del job, results  # or they would live until the next step


class StepTimes:
    """The times of steps, which begin and end in order; see the module."""

    def __init__(self, clock: Clock = time.monotonic):
        self._clock = clock
        self._watch = Watch(clock)
        self._last_end = clock()
        self._paused = 0.0  # since the end of the last step
        self._asked = (self._last_end, self._last_end)
        self._under_way: list[tuple[Future[float], tuple[float, float]]] = []

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """The loop waits for the batch of the next step."""
        asked = self._clock()
        yield
        self._asked = asked, self._clock()

    def begin(self, results: Any) -> None:
        """A step was dispatched; it is done as soon as its `results` are."""
        self._under_way.append((self._watch.note(results), self._asked))

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """The loop does something else; no step is under way."""
        began = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - began

    def end(self) -> Took:
        """The times of the oldest step under way, once it is done."""
        noted, (asked, got) = self._under_way.pop(0)
        end = noted.result()
        waited = max(0.0, got - max(asked, self._last_end))
        took = Took(end - self._last_end - self._paused, waited)
        self._last_end, self._paused = end, 0.0
        return took

    def close(self) -> None:
        self._watch.close()


class Meter:
    """Rates over the steps since the last progress line; `pairs` are of a global batch."""

    def __init__(self, *, pairs: int, start: int, total: int, epoch_steps: int, shown: str):
        self.pairs, self.total, self.epoch_steps = pairs, total, epoch_steps
        self.shown = shown  # the metric beside the loss
        self.start = start
        self.steps, self.waited, self.took = 0, 0.0, 0.0

    def add(self, step: int, took: Took) -> None:
        """Counts a step."""
        if step == self.start + 1:  # it includes the compilation
            return
        self.steps += 1
        self.waited += took.waited
        self.took += took.seconds

    def line(self, step: int, scalars: Mapping[str, float]) -> str:
        """The progress line of a step; the count begins again."""
        text = f"step {step}/{self.total} (epoch {step / self.epoch_steps:.2f}) "
        text += f"loss {scalars['loss']:.4f} acc {scalars[self.shown]:.2f}"
        if self.steps:
            rate = self.steps / self.took
            text += f" | {rate * self.pairs:.1f} pairs/s, data wait {self.waited / self.took:.1%}"
            text += f" | ETA {duration((self.total - step) / rate)}"
        self.steps, self.waited, self.took = 0, 0.0, 0.0
        return text
