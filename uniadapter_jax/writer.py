"""Metrics of a run, to metrics.jsonl and to TensorBoard.

`clu.metric_writers` would import TensorFlow; tensorboardX does not. Of it only the event file is
used: its SummaryWriter writes in a thread, where a full disk ends in a process that waits forever.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
from typing import Any

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from uniadapter_jax.common.disk import disk_errors


class Writer:
    """Writes on the first process only; a resumed run drops what it will write again."""

    def __init__(self, workdir: pathlib.Path, resumed_step: int):
        self._on = jax.process_index() == 0
        self._path = workdir / "metrics.jsonl"
        if not self._on:
            return
        kept = [line for line in _complete_lines(self._path) if _step(line) <= resumed_step]
        text = "".join(kept)
        with disk_errors(self._path, len(text)):
            scratch = self._path.with_suffix(".tmp")
            scratch.write_text(text)
            scratch.replace(self._path)
            self._lines = self._path.open("a")
            board = workdir / "tensorboard"
            board.mkdir(exist_ok=True)
            # The process number: two starts within a second would share a file.
            self._events = EventsWriter(str(board / "events"), f".{os.getpid()}")
            start = SessionLog(status=SessionLog.START)  # drops later steps of earlier files
            self._events.write_event(Event(step=resumed_step + 1, session_log=start))
            self._events.flush()

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line {kind, step, ...}; numbers go to TensorBoard too, under kind/name."""
        if not self._on:
            return
        line = json.dumps({"kind": kind, "step": step, **values}) + "\n"
        with disk_errors(self._path, len(line)):
            self._lines.write(line)
            self._lines.flush()
            for name, value in values.items():
                if isinstance(value, int | float):
                    summary = scalar(f"{kind}/{name}", value)
                    event = Event(step=step, wall_time=time.time(), summary=summary)
                    self._events.write_event(event)

    def flush(self) -> None:
        """Puts what TensorBoard reads on disk."""
        if self._on:
            with disk_errors(self._path, 0):
                self._events.flush()

    def read(self, kind: str) -> list[dict[str, Any]]:
        """All lines of a kind, of earlier processes of this run too; none on other processes."""
        lines = map(json.loads, _complete_lines(self._path) if self._on else ())
        return [line for line in lines if line["kind"] == kind]

    def close(self) -> None:
        """Flushes and closes both."""
        if self._on:
            with disk_errors(self._path, 0):
                self._lines.close()
                self._events.close()


def _step(line: str) -> int:
    return json.loads(line)["step"]


def _complete_lines(path: pathlib.Path) -> list[str]:
    """Lines of the file; one cut short by a kill is left out."""
    if not path.is_file():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
