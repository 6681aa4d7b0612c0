"""The charts of a setting as Vega-Lite: intervals, seeds, learning curves, trials.

All are narrow enough for a phone. Every mark has a description, which screen readers say and
pointers show. Nothing is told by colour alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from uniadapter_jax.benchmark import text
from uniadapter_jax.benchmark.drawing import LIGHT
from uniadapter_jax.benchmark.statistics import Row, Table

_STEP = 17  # pixels of a row
_WIDTH = 205
_PANELS = 3  # learning curves side by side
_CERTAIN = 0.05
Spec = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart and its names.

    Attributes:
      name: of its files, behind that of the setting.
      alt: what it shows, in a sentence.
      narrow: another form for phones, if it needs one.
    """

    name: str
    title: str
    alt: str
    spec: Spec
    narrow: Spec | None = None


def charts_of(table: Table) -> list[Chart]:
    """The charts with a line per row that a setting has data for."""
    rows = _best_first(table)
    made = (_intervals, _seeds, _trials)
    return [chart for make in made if rows and (chart := make(table, rows))]


def described(spec: Spec, **encoding: Any) -> Spec:
    """A layer with that encoding, each mark of which says its field `told`."""
    return {**spec, "encoding": {**encoding, "description": {"field": "told"}}}


def quantity(field: str, title: str | None = None, **more: Any) -> Spec:
    """An encoding of a number."""
    return {"field": field, "type": "quantitative", "title": title, **more}


def _best_first(table: Table) -> list[Row]:
    sign = table.setting.measure.sign
    rows = [row for row in table.rows if row.mean is not None]
    return sorted(rows, key=lambda row: -sign * (row.mean or 0.0))


def _of_rows(table: Table, rows: Sequence[Row], layers: Sequence[Spec]) -> Spec:
    """Layers that share the rows as their vertical axis."""
    names = [row.name for row in rows]
    y = {
        "field": "row",
        "type": "nominal",
        "sort": names,
        "title": None,
        "scale": {"domain": names},
    }
    return {
        "width": _WIDTH,
        "height": _STEP * len(rows),
        "layer": [{**layer, "encoding": {"y": y, **layer["encoding"]}} for layer in layers],
    }


def _data(values: Sequence[Mapping[str, Any]]) -> Spec:
    return {"data": {"values": list(values)}}


def _intervals(table: Table, rows: Sequence[Row]) -> Chart | None:
    measure = table.setting.measure
    values: list[Spec] = []
    for row in rows:
        if gap := row.gap:
            words = text.interval(gap.difference, gap.low, gap.high)
            told = f"{row.name}: {words} {measure.unit}, p {text.probability(gap.corrected)}"
            numbers = {"difference": gap.difference, "low": gap.low, "high": gap.high}
            certain = gap.corrected < _CERTAIN
            values.append({"row": row.name, "told": told, "certain": certain, **numbers})
    if not values:
        return None
    sure = {"condition": {"test": "datum.certain", "value": LIGHT["accent"]}}
    colour = {**sure, "value": LIGHT["muted"]}
    hollow = {"condition": {**sure["condition"]}, "value": LIGHT["paper"]}
    title = f"{measure.name} {text.MINUS} {table.baseline}, in {measure.unit}"
    zero = {"mark": {"type": "rule", "color": LIGHT["warn"], "aria": False}}
    layers = [
        {
            **_data(values),
            **{"mark": {"type": "rule", "strokeWidth": 2, "aria": False}},
            "encoding": {"x": quantity("low", title), "x2": {"field": "high"}, "color": colour},
        },
        described(
            {**_data(values), "mark": {"type": "point", "size": 45, "opacity": 1}},
            **{"x": quantity("difference", title), "stroke": colour, "fill": hollow},
        ),
        {**zero, "encoding": {"x": {"datum": 0}, "y": None}},
    ]
    head = f"Difference to {table.baseline}"
    alt = f"{head}, with 95 % intervals over test items; filled where p < 0.05 after correction"
    shown = [row for row in rows if row.gap]
    return Chart("intervals", head, alt, _of_rows(table, shown, layers))


def _seeds(table: Table, rows: Sequence[Row]) -> Chart | None:
    name = table.setting.measure.name
    values = [
        {"row": row.name, "value": value, "told": f"{row.name}, seed {cell.seed}: {value:.1f}"}
        for row in rows
        for cell, value in zip(row.cells, row.values, strict=True)
    ]
    means = [{"row": row.name, "value": row.mean} for row in rows]
    x = quantity("value", name, scale={"zero": False})
    tick = {"type": "tick", "color": LIGHT["warn"], "thickness": 2, "size": 13, "aria": False}
    point = {"type": "point", "color": LIGHT["accent"], "size": 35, "opacity": 1}
    layers = [
        {**_data(means), "mark": tick, "encoding": {"x": x}},
        described({**_data(values), "mark": point}, x=x),
    ]
    alt = f"{name} of each seed as a circle, the mean as a bar"
    return Chart("seeds", "Every seed", alt, _of_rows(table, rows, layers))


def _trials(table: Table, rows: Sequence[Row]) -> Chart | None:
    values = [value for row in rows for value in _trials_of(row)]
    known = [value["value"] for value in values if value["value"] is not None]
    if not known:
        return None
    # One that failed has no value: it stands at the left end.
    left = min(known) - 0.08 * (max(known) - min(known) or 1.0)
    for value in values:
        value["value"] = left if value["value"] is None else value["value"]
    shape: Spec = {"field": "state", "type": "nominal", "legend": None}
    states = ("tried", "chosen", "failed")
    shape["scale"] = {"domain": states, "range": ["circle", "diamond", "cross"]}
    colours = [LIGHT["muted"], LIGHT["accent"], LIGHT["warn"]]
    colour = {**shape, "scale": {"domain": states, "range": colours}}
    x = quantity("value", "value on validation", scale={"zero": False})
    mark: Spec = {"type": "point", "opacity": 1, "size": 45}
    layer = described({**_data(values), "mark": mark}, x=x, shape=shape, color=colour)
    alt = "Validation value of each trial: a diamond is chosen, a cross at the left end failed"
    return Chart("trials", "Trials on validation", alt, _of_rows(table, rows, [layer]))


def _trials_of(row: Row) -> list[dict[str, Any]]:
    found = {}
    for cell in row.cells:
        for values, value, error in cell.trials:
            is_chosen = value is not None and values == " ".join(cell.chosen)
            state = "failed" if value is None else "chosen" if is_chosen else "tried"
            ending = f"failed: {error}" if value is None else f"{value:.1f}"
            told = f"{row.name}, {values or 'as it is'}: {ending}, {state}"
            told = text.shortened(text.plain(told), 160)
            found[told] = {"row": row.name, "value": value, "state": state, "told": told}
    return list(found.values())


def curves_of(table: Table) -> list[Chart]:
    """The learning curves of a setting, if it has any."""
    rows = _best_first(table)
    values: list[Spec] = []
    for row in rows:
        for cell in row.cells:
            told = f"{row.name}, seed {cell.seed}: "
            told += ", ".join(f"{value:.1f} at {step}" for step, value in cell.curve)
            values += [
                {"row": row.name, "seed": cell.seed, "step": step, "value": value, "told": told}
                for step, value in cell.curve
            ]
    if not values:
        return []
    names = [row.name for row in rows]
    facet: Spec = {"field": "row", "type": "nominal", "sort": names, "title": None}
    facet |= {"header": {"labelLimit": 100, "labelAnchor": "start"}}
    line: Spec = {"type": "line", "color": LIGHT["accent"], "strokeWidth": 1.2}
    if max(len(cell.curve) for row in rows for cell in row.cells) == 1:
        line |= {"point": {"color": LIGHT["accent"], "size": 15, "aria": False}}
    axes = {
        "x": quantity("step", "step", axis={"tickCount": 2, "format": "~s"}),
        "y": quantity("value", None, scale={"zero": False}, axis={"tickCount": 3}),
        "strokeDash": {"field": "seed", "type": "nominal", "legend": None},
        "detail": {"field": "seed", "type": "nominal"},
    }
    spec = {
        **_data(values),
        **{"facet": facet, "columns": _PANELS, "spacing": 12},
        "spec": {"width": 84, "height": 66, **described({"mark": line}, **axes)},
    }
    alt = "Value on validation by step, a panel for each row, a line for each seed"
    return [Chart("curves", "Learning curves", alt, spec)]
