"""Charts of quality against a cost, with the Pareto front and the name of every row."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

from uniadapter_jax.benchmark import text
from uniadapter_jax.benchmark.charts import Chart, Spec, described, quantity
from uniadapter_jax.benchmark.drawing import LIGHT
from uniadapter_jax.benchmark.labels import Box, Label, place
from uniadapter_jax.benchmark.pareto import AXES, Axis, Point, points_of
from uniadapter_jax.benchmark.statistics import Table

_WIDE, _NARROW = (520, 340), (278, 400)  # of the area of marks, in pixels
_DECADES = 10.0  # a range of costs from which on the axis is logarithmic


@dataclasses.dataclass(frozen=True)
class _Scale:
    """Numbers to pixels and back; pixels grow from `low` on."""

    low: float
    high: float
    pixels: int
    is_log: bool = False

    def pixel(self, value: float) -> float:
        return self.pixels * (self._of(value) - self._of(self.low)) / self._span

    def value(self, pixel: float) -> float:
        moved = self._of(self.low) + pixel / self.pixels * self._span
        return math.exp(moved) if self.is_log else moved

    @property
    def _span(self) -> float:
        return self._of(self.high) - self._of(self.low)

    def _of(self, value: float) -> float:
        return math.log(value) if self.is_log else value

    def spec(self) -> Spec:
        kind = "log" if self.is_log else "linear"
        return {"type": kind, "domain": [self.low, self.high], "nice": False, "zero": False}


def pareto_charts(table: Table) -> list[Chart]:
    """A chart for each cost that at least one row has."""
    charts = []
    for axis in AXES:
        points = points_of(table, axis)
        if any(point.cost > 0 for point in points):
            wide, narrow = (_spec(table, axis, points, size) for size in (_WIDE, _NARROW))
            front = ", ".join(point.row for point in points if point.on_front)
            name = table.setting.measure.name
            alt = f"{name} against {axis.title}. On the front: {front}"
            charts.append(
                Chart(f"pareto-{axis.name}", f"Quality against {axis.title}", alt, wide, narrow)
            )
    return charts


def _spec(table: Table, axis: Axis, points: Sequence[Point], size: tuple[int, int]) -> Spec:
    """Rows that cost nothing are lines across, for a logarithmic axis has no 0."""
    paid = sorted((p for p in points if p.cost > 0), key=lambda p: (not p.on_front, p.cost))
    free = [point for point in points if point.cost <= 0]
    x, y = _cost_scale(paid, size[0]), _quality_scale(points, size[1])
    title = f"{axis.title} ({axis.unit})" if axis.unit else axis.title
    ticks = {"values": _ticks(x)} if x.is_log else {"tickCount": 5}
    across = quantity("x", title, scale=x.spec(), axis={"format": "~s", **ticks})
    up = quantity("y", table.setting.measure.name, scale=y.spec(), axis={"tickCount": 6})
    front = [point for point in paid if point.on_front]
    return {
        **{"width": size[0], "height": size[1]},
        "layer": [
            *_free_layers(free, x, y, table, up),
            _layer(
                [{"x": p.cost, "y": p.quality} for p in front],
                # A row's quality is to be had at its cost and at any higher one.
                {"type": "line", "interpolate": "step-after", "color": LIGHT["accent"]},
                {"x": across, "y": up},
            ),
            *_name_layers(paid, free, x, y, across, up),
            _point_layer(paid, axis, table, across, up),
        ],
    }


def _cost_scale(paid: Sequence[Point], pixels: int) -> _Scale:
    low, high = min(p.cost for p in paid), max(p.cost for p in paid)
    if high / low >= _DECADES:
        return _Scale(low / (high / low) ** 0.06, high * (high / low) ** 0.12, pixels, True)
    margin = (high - low) or 0.2 * high
    return _Scale(max(0.0, low - 0.12 * margin), high + 0.12 * margin, pixels)


def _quality_scale(points: Sequence[Point], pixels: int) -> _Scale:
    low, high = min(p.quality for p in points), max(p.quality for p in points)
    margin = 0.08 * (high - low) or 1.0
    return _Scale(low - margin, high + margin, pixels)


def _ticks(scale: _Scale) -> list[float]:
    """Powers of ten, with 2 and 5 between where few fit."""
    first, last = math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    every = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    return [tick for tick in every if scale.low <= tick <= scale.high]


def _layer(values: Sequence[Spec], mark: Spec, encoding: Spec) -> Spec:
    return {
        "data": {"values": list(values)},
        "mark": {"aria": False, **mark},
        "encoding": encoding,
    }


def _free_layers(free: Sequence[Point], x: _Scale, y: _Scale, table: Table, up: Spec) -> list[Spec]:
    name = table.setting.measure.name
    rules = [{"y": p.quality, "told": f"{p.row}: {name} {p.quality:.1f}, free"} for p in free]
    rule = _layer(
        rules, {"type": "rule", "color": LIGHT["warn"], "strokeDash": [5, 3], "aria": True}, {}
    )
    names = [{"y": p.quality, "name": _free_name(p)} for p in free]
    words = {"type": "text", "align": "left", "dx": 4, "dy": -8, "color": LIGHT["warn"]}
    left = {"x": {"value": 0}, "y": up, "text": {"field": "name"}}
    return [described(rule, y=up), _layer(names, words, left)]


def _free_name(point: Point) -> str:
    return f"{text.shortened(point.row, 24)} (nothing trained)"


def _name_layers(
    paid: Sequence[Point], free: Sequence[Point], x: _Scale, y: _Scale, across: Spec, up: Spec
) -> list[Spec]:
    """Names beside the marks, and lines to those that stand apart."""
    names = [text.shortened(point.row, 24) for point in paid]
    pixels = [(x.pixel(p.cost), y.pixels - y.pixel(p.quality)) for p in paid]
    tops = [y.pixels - y.pixel(point.quality) for point in free]
    taken = [
        Box(0, top - 15, 6.5 * len(_free_name(p)), top + 1)
        for top, p in zip(tops, free, strict=True)
    ]
    taken += _front_boxes([at for at, p in zip(pixels, paid, strict=True) if p.on_front])
    labels = place(pixels, names, x.pixels, y.pixels, taken)

    def put(label: Label) -> dict[str, Any]:
        return {"x": x.value(label.x), "y": y.value(y.pixels - label.y)}

    words = [{**put(label), "name": n} for label, n in zip(labels, names, strict=True)]
    lines = [
        {**put(label._replace(x=label.tip)), "x2": point.cost, "y2": point.quality}
        for label, point in zip(labels, paid, strict=True)
        if label.is_far
    ]
    ends = {"x": across, "y": up, "x2": {"field": "x2"}, "y2": {"field": "y2"}}
    mark = {"type": "text", "align": "left", "baseline": "middle"}
    return [
        _layer(lines, {"type": "rule", "color": LIGHT["muted"], "strokeWidth": 0.7}, ends),
        _layer(words, mark, {"x": across, "y": up, "text": {"field": "name"}}),
    ]


def _front_boxes(corners: Sequence[tuple[float, float]]) -> list[Box]:
    """The steps of the front as thin boxes, from points in order of their cost."""
    boxes = []
    for (x, y), (right, top) in itertools.pairwise(corners):
        boxes.append(Box(x, y - 2, right, y + 2))
        boxes.append(Box(right - 2, min(y, top), right + 2, max(y, top)))
    return boxes


def _point_layer(paid: Sequence[Point], axis: Axis, table: Table, across: Spec, up: Spec) -> Spec:
    name = table.setting.measure.name
    values = []
    for p in paid:
        cost = text.duration(p.cost) if axis.unit == "s" else text.sized(p.cost, axis.unit)
        ending = ", on the front" if p.on_front else ""
        told = f"{p.row}: {name} {p.quality:.1f}, {axis.title} {cost}{ending}"
        values.append({"x": p.cost, "y": p.quality, "front": p.on_front, "told": told})
    on = "datum.front"
    look = {
        "shape": {"condition": {"test": on, "value": "diamond"}, "value": "circle"},
        "color": {"condition": {"test": on, "value": LIGHT["accent"]}, "value": LIGHT["muted"]},
    }
    mark = {"type": "point", "filled": True, "size": 60, "opacity": 1, "aria": True}
    return described(_layer(values, mark, {}), x=across, y=up, **look)
