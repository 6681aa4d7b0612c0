"""Boards show the numbers of a run as it goes, and the result beside the settings it came from.

A board is one file with the methods below; `--wandb` of `main` adds one to TensorBoard's.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from ml_collections import ConfigDict

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.config.rules import leaves
from uniadapter_jax.runs.identity import digest
from uniadapter_jax.weights.hub.names import public

_COMPARED = (
    *("optimizer.lr", "train.batch_size", "train.steps", "train.epochs", "seed"),
    "eval.split",  # what the final numbers are of: a trial of a search has them of validation data
)


class Begun(NamedTuple):
    """A run that a board shows.

    Attributes:
      id: the same whenever the run goes on in its workdir, and of no other run.
      settings: what runs are compared by, `compared`.
      config: the whole config, as JSON has it.
    """

    workdir: pathlib.Path
    id: str
    name: str
    settings: Mapping[str, bool | float | str]
    config: Mapping[str, Any]


class Board(Protocol):
    """Shows numbers; works on the first process only."""

    def begin(self, run: Begun) -> None:
        """Prepares for a run, which may have been shown up to some step."""

    def resume(self, step: int) -> None:
        """Learns that the numbers of all steps after this one will follow."""

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """Takes numbers of a step, which are called kind/name."""

    def flush(self) -> None:
        """Brings what was written to disk."""

    def finish(self, step: int, final: Mapping[str, float]) -> None:
        """Shows the result, measured at a step, once, in place of an earlier result of the run."""

    def close(self) -> None:
        """Ends, with or without a result."""


@contextlib.contextmanager
def opened(boards: Sequence[Board], run: Begun) -> Iterator[Sequence[Board]]:
    """The boards, begun; none on other processes than the first. Closes them at the end."""
    if jax.process_index() != 0:
        yield ()
        return
    try:
        for board in boards:
            board.begin(run)
        yield boards
    except BaseException:
        for board in boards:
            with contextlib.suppress(Exception):  # the error being raised says more
                board.close()
        raise
    with disk_errors(run.workdir):
        for board in boards:
            board.close()


def begun(workdir: pathlib.Path, config: ConfigDict, identity: Mapping[str, Any]) -> Begun:
    """What boards know of a run in a workdir."""
    return Begun(
        workdir=workdir,
        # With the folder's name, as the same run may be made in two.
        id=digest(identity, {"workdir": workdir.resolve().name})[:16],
        name=config.name,
        settings=compared(config),
        config=json.loads(config.to_json_best_effort()),
    )


def compared(config: ConfigDict) -> dict[str, bool | float | str]:
    """{name: value} of the settings that tell runs apart: method, options, lr, batch, backbone."""
    values = dict(leaves(config))
    chosen = {
        name: value
        for name, value in values.items()
        if name in _COMPARED or name.startswith(("method.", "task.name"))
    }
    return {
        "backbone": public(config.backbone),
        **{name: _plain(value) for name, value in sorted(chosen.items())},
    }


def numbers_of(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """{way/metric: number} of an evaluator's metrics."""
    return {
        f"{way}/{name}": value for way, values in metrics.items() for name, value in values.items()
    }


def result_numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a result by which runs are compared."""
    loss = result["final_loss"]
    return {**numbers_of(result["metrics"]), **({} if loss is None else {"loss": loss})}


def _plain(value: Any) -> bool | float | str:
    """The value as boards take it: lists, and fields that are unset, as text."""
    return value if isinstance(value, bool | int | float | str) else str(value)
