"""Writes the metrics of a run to metrics.jsonl, and gives them to the boards that show them."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.files import write_whole
from uniadapter_jax.parallel.progress import say
from uniadapter_jax.runs.boards import Board
from uniadapter_jax.runs.metrics_file import make_line, read_lines

_NAMED = 5  # damaged lines and missing steps that a warning names


class Writer:
    """Writes on the first process only; a resumed run drops the lines that it will write again.

    Damaged lines are reported and moved to metrics.damaged.jsonl; the run goes on without them.
    """

    def __init__(self, workdir: pathlib.Path, resumed_step: int, boards: Sequence[Board] = ()):
        self._boards = boards
        self._on = jax.process_index() == 0
        self._path = workdir / "metrics.jsonl"
        if not self._on:
            return
        self._take_up(resumed_step)
        with disk_errors(self._path):
            self._lines = self._path.open("a")
        for board in self._boards:
            board.resume(resumed_step)

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
        """Writes a line {kind, step, ...}; boards get the numbers, under kind/name.

        They are in the files after the next `flush`.
        """
        if not self._on:
            return
        line = make_line({"kind": kind, "step": step, **values})
        with disk_errors(self._path, len(line)):
            self._lines.write(line)
        numbers = {n: value for n, value in values.items() if isinstance(value, int | float)}
        for board in self._boards:
            board.write(kind, step, numbers)

    def flush(self) -> None:
        """Brings the lines to disk, and what the boards have."""
        if not self._on:
            return
        with disk_errors(self._path):
            self._lines.flush()
        for board in self._boards:
            board.flush()

    def read(self, kind: str) -> list[dict[str, Any]]:
        """All lines of a kind, including those from before a resume; [] on other processes."""
        if self._on and not self._lines.closed:
            self.flush()
        lines = [values for _, _, values in read_lines(self._path)] if self._on else []
        return [line for line in lines if line is not None and line["kind"] == kind]

    def close(self) -> None:
        """Flushes all, and closes the lines; the boards stay open for the result."""
        if not self._on:
            return
        with disk_errors(self._path):
            self._lines.close()
        for board in self._boards:
            board.flush()


def _some(numbers: Any) -> str:
    """The first of some numbers, as text."""
    numbers = list(numbers)
    more = len(numbers) - _NAMED
    return ", ".join(map(str, numbers[:_NAMED])) + (f" and {more} more" if more > 0 else "")
