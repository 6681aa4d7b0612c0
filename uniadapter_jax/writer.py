"""Metrics of a run, to TensorBoard and to metrics.jsonl.

`clu.metric_writers` would import TensorFlow; tensorboardX does not.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import tensorboardX


class Writer:
    """Writes on the first process only; a resumed run drops what it will write again."""

    def __init__(self, workdir: pathlib.Path, resumed_step: int):
        self._on = jax.process_index() == 0
        if not self._on:
            return
        path = workdir / "metrics.jsonl"
        kept = [line for line in _complete_lines(path) if json.loads(line)["step"] <= resumed_step]
        scratch = path.with_suffix(".tmp")
        scratch.write_text("".join(kept))
        scratch.replace(path)
        self._lines = path.open("a")
        # purge_step tells TensorBoard the same.
        self._board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=resumed_step + 1
        )

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line {kind, step, ...}; numbers go to TensorBoard too, under kind/name."""
        if not self._on:
            return
        self._lines.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flushes and closes both."""
        if self._on:
            self._lines.close()
            self._board.close()


def _complete_lines(path: pathlib.Path) -> list[str]:
    """Lines of the file; one cut short by a kill is left out."""
    if not path.is_file():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
