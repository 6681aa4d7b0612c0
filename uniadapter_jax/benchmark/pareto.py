"""Pareto fronts: the rows of which no other is at least as good and cheaper, or better as cheap."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from uniadapter_jax.benchmark.statistics import Row, Table


@dataclasses.dataclass(frozen=True)
class Axis:
    """A cost that quality is held against.

    Attributes:
      measured: it is read from a clock or an allocator, so that it differs from run to run.
    """

    name: str
    title: str
    unit: str
    of: Callable[[Row], float | None]
    measured: bool = False


@dataclasses.dataclass(frozen=True)
class Point:
    row: str
    cost: float
    quality: float
    on_front: bool = False


AXES = (
    Axis("trained", "trained parameters", "", lambda row: row.trained),
    Axis("adapter_bytes", "bytes of the adapter", "B", lambda row: row.file_size),
    Axis("step_flops", "FLOPs of a step", "FLOP", lambda row: row.cost("step_flops")),
    Axis("step_memory", "memory of a step", "B", lambda row: row.cost("step_memory_bytes")),
    Axis("step_seconds", "time of a step", "s", lambda row: row.cost("step_seconds"), True),
)


def points_of(table: Table, axis: Axis) -> list[Point]:
    """The rows that have both numbers, and whether each is on the front.

    A row that trains nothing has no step and may have no file: it costs 0 on every axis.
    """
    sign = table.setting.measure.sign
    points = []
    for row in table.rows:
        cost = 0.0 if row.trained == 0 else axis.of(row)
        if row.mean is not None and cost is not None:
            points.append(Point(row.name, float(cost), row.mean))
    return [
        dataclasses.replace(point, on_front=not _beaten(point, points, sign)) for point in points
    ]


def _beaten(point: Point, points: Sequence[Point], sign: int) -> bool:
    return any(
        other.cost <= point.cost
        and sign * other.quality >= sign * point.quality
        and (other.cost, other.quality) != (point.cost, point.quality)
        for other in points
    )
