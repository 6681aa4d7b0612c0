"""Writes the report of a grid: tables, which need nothing more, then charts and the page."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence

from uniadapter_jax.benchmark.charts import Chart, charts_of, curves_of
from uniadapter_jax.benchmark.claims import verdicts_of
from uniadapter_jax.benchmark.drawing import Drawing, draw
from uniadapter_jax.benchmark.page import Shown, page_of
from uniadapter_jax.benchmark.pareto_charts import pareto_charts
from uniadapter_jax.benchmark.records import Cell, Grid, read_cells, read_grid
from uniadapter_jax.benchmark.statistics import Table, tables_of
from uniadapter_jax.benchmark.tables import csv_files, markdown_of
from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.files import write_whole
from uniadapter_jax.common.terminal import count_of


def write_report(out: pathlib.Path, baseline: str | None = None) -> pathlib.Path:
    """Writes `out`/report/ from grid.json and the cells in `out`/results/; returns the folder.

    Args:
      out: the output directory of a grid.
      baseline: the row of the differences; None: the grid's.

    Raises:
      UserError: a file is damaged or wrong, or the baseline is no row; or the extra `report` is
        not installed, once the tables are written.
    """
    grid = read_grid(out)
    cells = [_without_path(cell, out) for cell in read_cells(out)]
    tables = tables_of(grid, cells, baseline)
    verdicts = verdicts_of(grid, tables)
    notes = notes_of(grid, tables, cells)
    folder = out / "report"
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
    files = csv_files(grid, tables, cells)
    files["tables.md"] = markdown_of(grid, tables, verdicts, notes)
    for name, content in files.items():
        write_whole(folder / name, content)
    charts = {table.setting.name: _drawn(table, folder) for table in tables}
    write_whole(folder / "index.html", page_of(grid, tables, verdicts, notes, charts))
    return folder


def _drawn(table: Table, folder: pathlib.Path) -> Shown:
    """Draws the charts of a setting, and writes them for papers."""
    shown: list[tuple[Chart, Drawing, Drawing | None]] = []
    for chart in (*charts_of(table), *pareto_charts(table), *curves_of(table)):
        name = f"{table.setting.name}-{chart.name}"
        drawing = draw(chart.spec, name, chart.alt)
        write_whole(folder / f"{name}.svg", drawing.svg)
        write_whole(folder / f"{name}.png", drawing.png)
        narrow = draw(chart.narrow, f"{name}-narrow", chart.alt) if chart.narrow else None
        shown.append((chart, drawing, narrow))
    return shown


def notes_of(grid: Grid, tables: Sequence[Table], cells: Sequence[Cell]) -> list[str]:
    """Lines that hold for the whole grid."""
    done = sum(len(row.cells) for table in tables for row in table.rows)
    failed = sum(len(row.failed) for table in tables for row in table.rows)
    missing = sum(len(row.missing) for table in tables for row in table.rows)
    seeds = ", ".join(map(str, grid.seeds))
    lines = [
        f"{count_of(len(tables), 'setting')}, {len(grid.rows)} rows, seeds {seeds}: "
        f"{done} runs, {failed} failed, {missing} not run yet."
    ]
    if others := len(cells) - done - failed:
        lines.append(f"{others} files in results/ belong to no cell of the grid: left out.")
    return lines


def _without_path(cell: Cell, out: pathlib.Path) -> Cell:
    """The cell with $OUT for the path of the grid, so that tables do not depend on it."""
    # Only as a whole path: OUT=runs/pictures is not the beginning of runs/pictures-mini.
    names = "|".join(re.escape(str(path)) for path in (out.absolute(), out))
    whole = re.compile(rf"(?<![\w./-])(?:{names})(?![\w+=@-]|[.,]\w)")
    command, error = (whole.sub("$OUT", text) for text in (cell.command, cell.error))
    return dataclasses.replace(cell, command=command, error=error)
