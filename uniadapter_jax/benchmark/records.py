"""Reads and checks what a grid leaves in its output directory: grid.json and one file per cell.

A file is read with care, for it may be damaged, or written by hand: a wrong one is a `FileError`
that names the file and the field.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from uniadapter_jax.benchmark.fields import NONE, NUMBER, Reader, open_sealed
from uniadapter_jax.benchmark.measures import Measure, find_measure
from uniadapter_jax.common.errors import UserError, unknown
from uniadapter_jax.common.files import FileError

KINDS = ("better", "not_worse")  # of claims; `benchmark.claims` judges them
FAILED, SUCCESS = "failed", "success"


@dataclasses.dataclass(frozen=True)
class Setting:
    """A backbone with a task: the rows of one table."""

    name: str
    title: str
    measure: Measure


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement about two rows; see docs/benchmark/README.md for `kind` and `margin`."""

    name: str
    statement: str
    source: str
    row: str
    than: str
    settings: tuple[str, ...]
    kind: str
    margin: float


@dataclasses.dataclass(frozen=True)
class Grid:
    """What was asked for."""

    name: str
    settings: Mapping[str, Setting]
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    baseline: str
    claims: tuple[Claim, ...]


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """What each query of a group came to: its rank, or how right its answer is (0 to 1)."""

    ids: tuple[str, ...]
    numbers: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
      error: why the run failed; "" if it did not.
      trained, total, file_size: parameters, and bytes of the exported adapter; None if it failed.
      scores: {"t2v/R@1": value} of all metrics.
      outcomes: {group: Outcomes}; empty where a file was stored without its ranks.
      content: the whole file.
    """

    path: pathlib.Path
    setting: str
    row: str
    seed: int
    method: str
    family: str
    task: str
    command: str
    failed: bool
    error: str
    trained: int | None
    total: int | None
    file_size: int | None
    content: Mapping[str, Any]
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    outcomes: Mapping[str, Outcomes] = dataclasses.field(default_factory=dict)
    cost: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    curve: tuple[tuple[int, float], ...] = ()
    trials: tuple[tuple[str, float | None, str], ...] = ()
    chosen: tuple[str, ...] = ()
    evaluations: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def about(self, name: str) -> Any:
        """The value of a dotted field of `meta_info` and the like; None if there is none."""
        value: Any = self.content
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def read_grid(out: pathlib.Path) -> Grid:
    """Reads `out`/grid.json.

    Raises:
      UserError: there is none, or it is damaged or wrong.
    """
    path = out / "grid.json"
    try:
        top = open_sealed(path)
    except FileNotFoundError:
        raise UserError(f"{out} holds no grid.json, so no grid has run there") from None
    rows = tuple(top.file_name(f"rows[{i}]", r) for i, r in enumerate(top.get("rows", list)))
    settings = {}
    for name in top.get("settings", dict):
        inner = top.inner("settings").inner(top.file_name("settings", name))
        metric = inner.get("metric", str)
        if (measure := find_measure(metric)) is None:
            raise inner.wrong("metric", f"is {metric!r:.80}; choose t2v/R@1, v2t/MnR or accuracy")
        settings[name] = Setting(name, inner.get("title", str), measure)
    if not rows or not settings:
        raise FileError(path, "has no rows or no settings, so there is nothing to report")
    return Grid(
        top.get("name", str),
        settings,
        rows,
        top.all("seeds", int),
        top.named("baseline", rows),
        tuple(_claim(inner, rows, tuple(settings)) for inner in top.each("claims")),
    )


def _claim(inner: Reader, rows: tuple[str, ...], settings: tuple[str, ...]) -> Claim:
    kind = inner.get("kind", str)
    if kind not in KINDS:
        raise inner.wrong("kind", f"is {kind!r:.80}; choose one of {', '.join(KINDS)}")
    asked = inner.all("settings", str)
    for name in asked:
        if name not in settings:
            raise FileError(inner.path, unknown(f"{inner.prefix}settings", name, settings))
    margin = float(inner.get("margin", *NUMBER)) if "margin" in inner.content else 0.0
    return Claim(
        name=inner.get("name", str),
        statement=inner.get("statement", str),
        source=inner.get("source", str),
        row=inner.named("row", rows),
        than=inner.named("than", rows),
        settings=asked,
        kind=kind,
        margin=abs(margin),
    )


def read_cells(out: pathlib.Path) -> list[Cell]:
    """Reads `out`/results/<setting>/<row>-seed<k>.json, all of them, in order of their names.

    Raises:
      UserError: a file is damaged or wrong.
    """
    return [_cell(path) for path in sorted((out / "results").glob("*/*.json"))]


def _cell(path: pathlib.Path) -> Cell:
    top = open_sealed(path)
    setting, row, seed = top.named("setting"), top.named("row"), top.get("seed", int)
    if (setting, f"{row}-seed{seed}.json") != (path.parent.name, path.name):
        raise FileError(path, f"says it is {setting}/{row}-seed{seed}.json")
    info = top.inner("train_info")
    status = info.get("status", str)
    if status not in (FAILED, SUCCESS):
        raise info.wrong("status", f"is {status!r:.80}; choose {SUCCESS} or {FAILED}")
    failed = status == FAILED
    names = ("num_trainable_params", "num_total_params", "file_size")
    trained, total, size = (None if failed else info.get(name, int) for name in names)
    return Cell(
        path=path,
        setting=setting,
        row=row,
        seed=seed,
        method=top.get("method", str),
        family=top.get("family", str),
        task=top.get("task", str),
        command=top.get("command", str),
        failed=failed,
        error=top.inner("run_info").get("error_msg", str) if failed else "",
        trained=trained,
        total=total,
        file_size=size,
        content=top.content,
        **({} if failed else _success(top)),
    )


def _success(top: Reader) -> dict[str, Any]:
    quality, cost = top.inner("quality"), top.inner("cost")
    evaluations = top.inner("evaluations")
    metrics = quality.inner("metrics")
    groups = {group: metrics.inner(group) for group in metrics.content}
    return {
        "scores": {
            f"{group}/{name}": float(numbers.get(name, *NUMBER))
            for group, numbers in groups.items()
            for name in numbers.content
        },
        "outcomes": dict(_outcomes(quality)),
        "cost": {name: cost.get(name, *NUMBER, NONE) for name in cost.content},
        "curve": tuple((p.get("step", int), p.get("value", *NUMBER)) for p in top.each("curve")),
        "trials": tuple(
            (
                " ".join(trial.all("values", str)),
                trial.get("value", *NUMBER, NONE),
                trial.get("error", str),
            )
            for trial in top.each("trials")
        ),
        "chosen": top.all("chosen", str),
        "evaluations": {name: evaluations.get(name, int) for name in evaluations.content},
    }


def _outcomes(quality: Reader) -> Iterator[tuple[str, Outcomes]]:
    """Of each direction of a search, or of all questions."""
    if "ranks" in quality.content:
        ranks, ids = quality.inner("ranks"), quality.inner("query_ids")
        for way in ranks.content:
            yield way, _paired(ids, way, ranks, way)
    if "correct" in quality.content:
        yield "accuracy", _paired(quality, "question_ids", quality, "correct")


def _paired(ids: Reader, of_ids: str, numbers: Reader, of_numbers: str) -> Outcomes:
    names, values = ids.all(of_ids, str, int), numbers.all(of_numbers, *NUMBER)
    if len(names) != len(values) or not names:
        counts = f"{len(names)} ids and {len(values)} numbers"
        raise ids.wrong(of_ids, f"and {numbers.prefix}{of_numbers} have {counts}")
    return Outcomes(tuple(map(str, names)), values)
