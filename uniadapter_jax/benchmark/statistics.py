"""Means over seeds, and intervals of differences to a baseline; docs/benchmark/README.md explains.

Everything here follows from the cells alone: the same cells give the same numbers, bit for bit.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from uniadapter_jax.benchmark.gaps import ROUNDING, Gap, gap_of, holm
from uniadapter_jax.benchmark.measures import Measure
from uniadapter_jax.benchmark.records import Cell, Grid, Setting
from uniadapter_jax.common.errors import UserError, unknown
from uniadapter_jax.tasks.retrieval.metrics import clip_of

ENOUGH_SEEDS = 3
FEW_CLIPS = 30  # below, percentiles of draws are too narrow


@dataclasses.dataclass(frozen=True)
class Row:
    """The cells of one row in one setting.

    Attributes:
      cells: those that succeeded, by seed.
      failed: the others that ran.
      missing: seeds without a file.
      values: the metric of each seed.
      gap: the difference to the baseline, if there is one.
    """

    name: str
    cells: tuple[Cell, ...]
    failed: tuple[Cell, ...]
    missing: tuple[int, ...]
    values: tuple[float, ...]
    gap: Gap | None = None

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def sd(self) -> float | None:
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def trained(self) -> int | None:
        return self.cells[0].trained if self.cells else None

    @property
    def percent(self) -> float | None:
        if not self.cells or not self.cells[0].total:
            return None
        return 100.0 * (self.cells[0].trained or 0) / self.cells[0].total

    @property
    def file_size(self) -> int | None:
        return self.cells[0].file_size if self.cells else None

    def cost(self, name: str) -> float | None:
        """The mean over seeds of a cost; None if no cell has it."""
        several = [value for cell in self.cells if (value := cell.cost.get(name)) is not None]
        return statistics.fmean(several) if several else None


@dataclasses.dataclass(frozen=True)
class Table:
    """All rows of a setting.

    Attributes:
      baseline: the row of the differences; None if it has no numbers here.
      queries, clips: how many were asked, and of how many items, which are what is drawn.
      resolution: about the smallest difference that this test set tells from 0; None if unknown.
      cautions: what a reader must know before trusting the numbers.
    """

    setting: Setting
    rows: tuple[Row, ...]
    baseline: str | None
    queries: int
    clips: int
    resolution: float | None
    cautions: tuple[str, ...]

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)


def tables_of(grid: Grid, cells: Sequence[Cell], baseline: str | None = None) -> list[Table]:
    """The table of each setting, with differences to `baseline` (default: the grid's).

    Raises:
      UserError: the baseline is no row, or cells of a setting were tested on different data.
    """
    baseline = grid.baseline if baseline is None else baseline
    if baseline not in grid.rows:
        raise UserError(unknown("--baseline: the grid", baseline, grid.rows))
    return [_table(grid, setting, cells, baseline) for setting in grid.settings.values()]


def _table(grid: Grid, setting: Setting, cells: Sequence[Cell], baseline: str) -> Table:
    ours = [cell for cell in cells if cell.setting == setting.name and cell.seed in grid.seeds]
    done = [cell for cell in ours if not cell.failed]
    _check_same_data(done, setting.measure)
    rows = [_row(grid, setting, name, ours) for name in grid.rows]
    base = next(row for row in rows if row.name == baseline)
    rows = _with_gaps(rows, base, setting.measure)
    known = next((cell.outcomes.get(setting.measure.group) for cell in done), None)
    ids = known.ids if known else ()
    clips = len({clip_of(query, setting.measure.group) for query in ids})
    table = Table(
        setting,
        tuple(rows),
        baseline if base.cells else None,
        len(ids),
        clips,
        _resolution(rows, setting.measure, clips),
        (),
    )
    return dataclasses.replace(table, cautions=tuple(_cautions(table, baseline)))


def _row(grid: Grid, setting: Setting, name: str, cells: Sequence[Cell]) -> Row:
    ours = sorted((cell for cell in cells if cell.row == name), key=lambda cell: cell.seed)
    done = tuple(cell for cell in ours if not cell.failed)
    run = {cell.seed for cell in ours}
    still = bool(done) and not any(cell.trained for cell in done)  # it runs once, whatever the seed
    return Row(
        name,
        done,
        tuple(cell for cell in ours if cell.failed),
        () if still else tuple(seed for seed in grid.seeds if seed not in run),
        tuple(_value(cell, setting.measure) for cell in done),
    )


def _value(cell: Cell, measure: Measure) -> float:
    """The metric as the cell states it; it must be that of its outcomes, if they are there."""
    if measure.name not in cell.scores:
        raise UserError(f"{cell.path}: quality.metrics has no {measure.name}")
    stated = cell.scores[measure.name]
    if outcomes := cell.outcomes.get(measure.group):
        counted = float(measure.values(outcomes.numbers).mean())
        if abs(stated - counted) > 0.006:  # an accuracy is rounded to two decimals
            raise UserError(
                f"{cell.path}: quality.metrics says {measure.name} is {stated:.6g}, "
                f"the outcomes of its queries say {counted:.6g}"
            )
    return stated


def _check_same_data(cells: Sequence[Cell], measure: Measure) -> None:
    for cell in cells[1:]:
        pair = f"{cells[0].path} and {cell.path} cannot be compared"
        ours, theirs = (c.about("meta_info.dataset_info.sha") for c in (cells[0], cell))
        if ours != theirs:
            raise UserError(f"{pair}: their test records are {ours!r:.40} and {theirs!r:.40}")
        known = [c.outcomes.get(measure.group) for c in (cells[0], cell)]
        if known[0] and known[1] and known[0].ids != known[1].ids:
            raise UserError(f"{pair}: they were asked different queries of {measure.group}")


def _with_gaps(rows: Sequence[Row], base: Row, measure: Measure) -> list[Row]:
    gaps = {
        row.name: gap
        for row in rows
        if row is not base and (gap := gap_of(measure, row.cells, base.cells))
    }
    corrected = dict(zip(gaps, holm([gap.p for gap in gaps.values()]), strict=True))
    return [
        dataclasses.replace(
            row, gap=dataclasses.replace(gaps[row.name], corrected=corrected[row.name])
        )
        if row.name in gaps
        else row
        for row in rows
    ]


def _resolution(rows: Sequence[Row], measure: Measure, clips: int) -> float | None:
    """The median half width of the intervals, or what even the clearest difference needs."""
    halves = [(row.gap.high - row.gap.low) / 2.0 for row in rows if row.gap]
    halves = [half for half in halves if half > ROUNDING]
    if not halves or not clips:
        return None
    return max(statistics.median(halves), measure.floor / clips)


def resolution(table: Table) -> str:
    """What a test set of this size can show; "" where that is unknown."""
    if table.resolution is None:
        return ""
    least = f"{table.resolution:.1f} {table.setting.measure.unit}"
    return f"differences to {table.baseline} below about {least} cannot be told from chance"


def _cautions(table: Table, baseline: str) -> list[str]:
    lines, measure = [], table.setting.measure
    if table.baseline is None:
        lines.append(f"The baseline {baseline} has no numbers here, so there are no differences.")
    few = [
        f"{row.name} ({len(row.cells)})"
        for row in table.rows
        if row.cells and row.trained and len(row.cells) < ENOUGH_SEEDS
    ]
    if few:
        lines.append(
            f"Fewer than {ENOUGH_SEEDS} seeds, so the spread over seeds is unknown or a guess: "
            f"{', '.join(few)}."
        )
    if table.resolution is not None and table.resolution > measure.telling:
        lines.append(
            f"{table.clips} test items are too few to tell close methods apart: "
            f"{resolution(table)}."
        )
    if 0 < table.clips < FEW_CLIPS:
        lines.append(f"With fewer than {FEW_CLIPS} test items the intervals are too narrow.")
    if any(row.cells for row in table.rows) and not table.clips:
        lines.append("The files hold no ranks, so there are no intervals.")
    lines += _of_cells(table.rows)
    return lines


def _of_cells(rows: Sequence[Row]) -> list[str]:
    lines = []
    failed = [f"{row.name} seed {cell.seed}" for row in rows for cell in row.failed]
    missing = [f"{row.name} seed {seed}" for row in rows for seed in row.missing]
    often = [
        f"{row.name} seed {cell.seed} ({cell.evaluations['test']})"
        for row in rows
        for cell in row.cells
        if cell.evaluations.get("test", 1) != 1
    ]
    if failed:
        lines.append(f"Failed: {', '.join(failed)}.")
    if missing:
        lines.append(f"Not run yet: {', '.join(missing)}.")
    if often:
        lines.append(f"Test data was not read exactly once by {', '.join(often)}.")
    return lines
