"""The tables as Markdown and CSV.

What a clock or an allocator said is in `measured.csv` only, so that the other files of a grid that
ran twice are the same bit for bit.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from uniadapter_jax.benchmark import text
from uniadapter_jax.benchmark.claims import Verdict
from uniadapter_jax.benchmark.records import Cell, Grid
from uniadapter_jax.benchmark.statistics import Row, Table, resolution

# Costs of the compiled step, which follow from the program.
COMPILED = ("step_flops", "step_useful_flops", "step_bytes", "step_memory_bytes")
MEASURED = ("step_seconds", "peak_memory_bytes", "train_seconds", "data_wait_share")


class Column(NamedTuple):
    """A column of a table for readers.

    Attributes:
      shown: the text of a row.
      key: what sorts it; None goes last.
      measured: see `pareto.Axis`.
      words: text, aligned to the left.
    """

    title: str
    shown: Callable[[Row], str]
    key: Callable[[Row], float | str | None]
    measured: bool = False
    words: bool = False


def _cost(title: str, name: str, show: Callable[[float | None], str]) -> Column:
    measured = name in MEASURED
    return Column(title, lambda r: show(r.cost(name)), lambda r: r.cost(name), measured)


def _gap(row: Row) -> str:
    gap = row.gap
    return text.interval(gap.difference, gap.low, gap.high) if gap else text.NOTHING


def columns_of(table: Table) -> list[Column]:
    """The columns of a setting's table, the first of which names the row."""
    measure = table.setting.measure
    against = f"{text.MINUS} {table.baseline} [95 %]" if table.baseline else "difference"
    return [
        Column("method", lambda r: r.name, lambda r: r.name, words=True),
        Column(
            measure.name, lambda r: text.quality(r.mean, r.sd), lambda r: r.mean
        ),  # ± the deviation over seeds
        Column(against, _gap, lambda r: r.gap.difference if r.gap else None),
        Column(
            "p (Holm)",
            lambda r: text.probability(r.gap.corrected) if r.gap else text.NOTHING,
            lambda r: r.gap.corrected if r.gap else None,
        ),
        Column("seeds", lambda r: str(len(r.cells)), lambda r: len(r.cells)),
        Column("trained", lambda r: text.count(r.trained), lambda r: r.trained),
        Column("%", lambda r: text.percent(r.percent), lambda r: r.percent),
        Column("adapter", lambda r: text.sized(r.file_size, "B"), lambda r: r.file_size),
        _cost("FLOPs of a step", "step_flops", lambda v: text.sized(v)),
        _cost("traffic of a step", "step_bytes", lambda v: text.sized(v, "B")),
        _cost("memory of a step", "step_memory_bytes", lambda v: text.sized(v, "B")),
        _cost("step", "step_seconds", text.duration),
        _cost("training", "train_seconds", text.duration),
        Column("chosen on validation", chosen_of, chosen_of, words=True),
    ]


def chosen_of(row: Row) -> str:
    """The values that validation chose, by seed where seeds chose differently."""
    by_seed = {cell.seed: " ".join(cell.chosen) for cell in row.cells}
    if len(set(by_seed.values())) > 1:
        return "; ".join(f"seed {seed}: {values}" for seed, values in by_seed.items())
    return next(iter(by_seed.values()), "") or text.NOTHING


def shown_rows(table: Table) -> list[Row]:
    """The rows that a setting has, whether they succeeded or not."""
    return [row for row in table.rows if row.cells or row.failed]


def markdown_of(
    grid: Grid, tables: Sequence[Table], verdicts: Sequence[Verdict], notes: Sequence[str]
) -> str:
    """The whole report as one page of Markdown."""
    lines = [f"# {text.markdown(grid.name)}", "", *(f"- {text.markdown(note)}" for note in notes)]
    if verdicts:
        lines += ["", "## Claims", "", *_claims(verdicts)]
    for table in tables:
        lines += ["", f"## {text.markdown(table.setting.title)}", "", *_setting(table)]
    lines += ["", "## Commands", "", "`$OUT` is the output directory of the grid.", ""]
    for table in tables:
        cells = [cell for row in table.rows for cell in row.cells]
        lines += [f"### {text.markdown(table.setting.title)}", ""]
        lines += [*text.code_block([cell.command for cell in cells]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _claims(verdicts: Sequence[Verdict]) -> list[str]:
    head = ["claim", "source", "setting", "compared", "effect [95 %]", "verdict", "cautions"]
    rows = []
    for verdict in verdicts:
        claim = verdict.claim
        rows.append(
            [
                claim.statement,
                claim.source,
                verdict.table.setting.title,
                compared(verdict),
                effect(verdict),
                verdict.verdict,
                "; ".join(verdict.reasons),
            ]
        )
    return _grid_of(head, rows, words=len(head))


def compared(verdict: Verdict) -> str:
    """What a claim's effect is the difference of."""
    claim = verdict.claim
    margin = f", margin {claim.margin:g}" if claim.kind == "not_worse" else ""
    return f"{claim.row} {text.MINUS} {claim.than}, {verdict.table.setting.measure.name}{margin}"


def effect(verdict: Verdict) -> str:
    gap = verdict.gap
    return text.interval(gap.difference, gap.low, gap.high) if gap else text.NOTHING


def basis(table: Table) -> str:
    """A sentence on what a table's numbers rest on."""
    measure = table.setting.measure
    words = f"{measure.name} of {table.queries:,} queries on {table.clips:,} test items"
    if told := resolution(table):
        words += f"; {told}"
    return f"{words}."


def _setting(table: Table) -> list[str]:
    columns = [column for column in columns_of(table) if not column.measured]
    rows = [[column.shown(row) for column in columns] for row in shown_rows(table)]
    head = [column.title for column in columns]
    lines = [text.markdown(basis(table)), "", *_grid_of(head, rows, words=1), ""]
    lines += [f"- {text.markdown(caution)}" for caution in table.cautions]
    for row in table.rows:
        for cell in row.failed:
            lines.append(f"- {row.name} seed {cell.seed} failed: {text.markdown(cell.error)}")
    return lines


def _grid_of(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """A Markdown table; the first `words` columns are aligned to the left."""
    rule = ["---" if place < words else "--:" for place in range(len(head))]
    body = [[text.markdown(cell) for cell in row] for row in (head, *rows)]
    return [f"| {' | '.join(row)} |" for row in (body[0], rule, *body[1:])]


def csv_files(grid: Grid, tables: Sequence[Table], cells: Sequence[Cell]) -> dict[str, str]:
    """{name of a file: its content}: one of each setting, `cells.csv` and `measured.csv`."""
    files = {f"{table.setting.name}.csv": _csv(map(_of_row, shown_rows(table))) for table in tables}
    known = [cell for cell in cells if cell.setting in grid.settings and cell.row in grid.rows]
    order = {name: place for place, name in enumerate((*grid.settings, *grid.rows))}
    known.sort(key=lambda cell: (order[cell.setting], order[cell.row], cell.seed))
    files["cells.csv"] = _csv(map(_of_cell, known))
    files["measured.csv"] = _csv(map(_measured, known))
    return files


def _of_row(row: Row) -> dict[str, Any]:
    gap = row.gap
    parts = ("difference", "low", "high", "p", "corrected", "seeds")
    names = ("difference", "low", "high", "p", "p_holm", "two_standard_errors_of_seeds")
    first = (*row.cells, *row.failed)[0]
    return {
        **{"row": row.name, "method": first.method, "family": first.family, "task": first.task},
        "seeds": " ".join(str(cell.seed) for cell in row.cells),
        "failed_seeds": " ".join(str(cell.seed) for cell in row.failed),
        **{"trained": row.trained, "percent": row.percent, "adapter_bytes": row.file_size},
        **{"mean": row.mean, "sd": row.sd},
        **{n: getattr(gap, part) if gap else None for n, part in zip(names, parts, strict=True)},
        **{name: row.cost(name) for name in COMPILED},
        "chosen": chosen_of(row) if row.cells else None,
        "error": "; ".join(dict.fromkeys(cell.error for cell in row.failed)),
    }


def _identity(cell: Cell) -> dict[str, Any]:
    return {"setting": cell.setting, "row": cell.row, "seed": cell.seed}


def _of_cell(cell: Cell) -> dict[str, Any]:
    return {
        **_identity(cell),
        **{"method": cell.method, "family": cell.family, "task": cell.task},
        **{"status": "failed" if cell.failed else "success", "error": cell.error},
        **{"trained": cell.trained, "total": cell.total, "adapter_bytes": cell.file_size},
        **cell.scores,
        **{name: cell.cost.get(name) for name in COMPILED},
        **{"chosen": " ".join(cell.chosen), "trials": len(cell.trials)},
        **{f"{split}_evaluations": times for split, times in cell.evaluations.items()},
        "test_records": cell.about("meta_info.dataset_info.sha"),
        "model": cell.about("meta_info.model_info.sha"),
        "command": cell.command,
    }


def _measured(cell: Cell) -> dict[str, Any]:
    devices = cell.about("meta_info.system_info.devices")
    kind = devices.get("kind") if isinstance(devices, Mapping) else None
    return {
        **_identity(cell),
        **{name: cell.cost.get(name) for name in MEASURED},
        "total_time": cell.about("run_info.total_time"),
        "created_at": cell.about("run_info.created_at"),
        "device": kind,
        "revision": cell.about("meta_info.revision"),
    }


def _csv(rows: Any) -> str:
    """Rows as CSV; a field that some lack is empty there."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([text.csv_text(name) for name in names])
    for row in rows:
        values = (row.get(name) for name in names)
        writer.writerow([text.csv_text(v) if isinstance(v, str) else v for v in values])
    return file.getvalue()
