"""Writes the metrics of a run to metrics.jsonl and to TensorBoard.

`clu.metric_writers` would import TensorFlow; tensorboardX does not. Only its EventsWriter is used:
its SummaryWriter writes in a thread, where a full disk makes the process wait forever.
"""

from __future__ import annotations

import os
import pathlib
import time
from typing import Any

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.files import write_whole
from uniadapter_jax.parallel.progress import say
from uniadapter_jax.runs.metrics_file import make_line, read_lines

_NAMED = 5  # damaged lines and missing steps that a warning names


class Writer:
    """Writes on the first process only; a resumed run drops the lines that it will write again.

    Damaged lines are reported and moved to metrics.damaged.jsonl; the run goes on without them.
    """

    def __init__(self, workdir: pathlib.Path, resumed_step: int):
        self._on = jax.process_index() == 0
        self._path = workdir / "metrics.jsonl"
        if not self._on:
            return
        self._take_up(resumed_step)
        with disk_errors(self._path):
            self._lines = self._path.open("a")
            board = workdir / "tensorboard"
            board.mkdir(exist_ok=True)
            # With the process number, as two starts within a second would share a file.
            self._events = EventsWriter(str(board / "events"), f".{os.getpid()}")
            start = SessionLog(status=SessionLog.START)  # drops later steps of earlier files
            self._events.write_event(Event(step=resumed_step + 1, session_log=start))
            self._events.flush()

    def _take_up(self, resumed_step: int) -> None:
        """Keeps the sound lines up to a step."""
        kept, damaged, steps = [], {}, set()
        for number, line, values in read_lines(self._path):
            if values is None:
                damaged[number] = line
            elif values["step"] <= resumed_step:
                kept.append(line)
                if values["kind"] == "train":
                    steps.add(values["step"])
        if damaged:
            aside = self._path.with_name("metrics.damaged.jsonl")
            earlier = aside.read_bytes() if aside.is_file() else b""
            write_whole(aside, earlier + b"".join(damaged.values()))
            say(f"warning: {self._path}: damaged: line {_some(damaged)}; moved to {aside}")
        if missing := [step for step in range(1, resumed_step + 1) if step not in steps]:
            say(
                f"warning: {self._path} lacks step {_some(missing)}; times and shares in the "
                "result are of the other steps"
            )
        write_whole(self._path, b"".join(kept))

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Writes a line {kind, step, ...}; numbers go to TensorBoard too, under kind/name.

        Both are in the files after the next `flush`.
        """
        if not self._on:
            return
        line = make_line({"kind": kind, "step": step, **values})
        with disk_errors(self._path, len(line)):
            self._lines.write(line)
            for name, value in values.items():
                if isinstance(value, int | float):
                    summary = scalar(f"{kind}/{name}", value)
                    event = Event(step=step, wall_time=time.time(), summary=summary)
                    self._events.write_event(event)

    def flush(self) -> None:
        """Brings the lines and the events of TensorBoard to disk."""
        if self._on:
            with disk_errors(self._path):
                self._lines.flush()
                self._events.flush()

    def read(self, kind: str) -> list[dict[str, Any]]:
        """All lines of a kind, including those from before a resume; [] on other processes."""
        if self._on and not self._lines.closed:
            self.flush()
        lines = [values for _, _, values in read_lines(self._path)] if self._on else []
        return [line for line in lines if line is not None and line["kind"] == kind]

    def close(self) -> None:
        """Flushes and closes both files."""
        if self._on:
            with disk_errors(self._path):
                self._lines.close()
                self._events.close()


def _some(numbers: Any) -> str:
    """The first of some numbers, as text."""
    numbers = list(numbers)
    more = len(numbers) - _NAMED
    return ", ".join(map(str, numbers[:_NAMED])) + (f" and {more} more" if more > 0 else "")
