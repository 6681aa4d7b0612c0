"""Compares methods under one recipe: a grid of runs, tables, and a page to look at.

    python -m uniadapter_jax.benchmark --config=configs/benchmark/demo.py --output=runs/benchmark
    python -m uniadapter_jax.benchmark --config=... --output=... --cells=0/4     # a quarter of it
    python -m uniadapter_jax.benchmark --output=runs/benchmark --report          # of what is there

A grid is methods x backbones and tasks x seeds. What a method tunes, such as its learning rate, is
chosen on validation data by as many trials for each; the test split is read once for each cell.
Each run has its own workdir below OUTPUT/runs, as of `uniadapter_jax.main`. Run again, the command
goes on with what is missing; killed or stopped, too. A run that fails is a row with its reason.
The report is in OUTPUT/report; see docs/benchmark.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from uniadapter_jax.benchmark.cells import Places
from uniadapter_jax.benchmark.grid import Unit, units_of
from uniadapter_jax.benchmark.runner import run_grid
from uniadapter_jax.common import signals
from uniadapter_jax.common.errors import UserError, run_app
from uniadapter_jax.common.shares import Share
from uniadapter_jax.config import validate


def say(message: str) -> None:
    """Prints a line for people on stderr."""
    print(message, file=sys.stderr, flush=True)


def show(units: Sequence[Unit], out: pathlib.Path) -> int:
    """Prints the command of every cell with its first candidate; 1 if a config is wrong."""
    status = 0
    for unit in units:
        chosen = unit.candidates[0]
        for seed in unit.seeds:
            try:
                validate(unit.config(chosen, seed))
                print(unit.command(str(Places(out, unit).workdir(chosen, seed)), chosen, seed))
            except UserError as error:
                print(f"# {unit.setting}/{unit.name}: {error}")
                status = 1
    return status


def main() -> None:
    """Runs the command."""
    config = config_flags.DEFINE_config_file("config", None, "The grid, configs/benchmark/NAME.py.")
    output = flags.DEFINE_string("output", None, "Where runs, results and the report go.")
    cells = flags.DEFINE_string("cells", "", "A share of the rows: i/n, i from 0 to n - 1.")
    dry = flags.DEFINE_boolean("dry-run", False, "Print the commands of the cells, run nothing.")
    report = flags.DEFINE_boolean("report", False, "Write the report; without --config, only that.")
    baseline = flags.DEFINE_string(
        "baseline", None, "The row to compare with; default: the grid's."
    )

    def command(argv: Sequence[str]) -> int:
        del argv
        grid = config.value
        if not output.value or (grid is None and not report.value):
            missing = "--output" if grid is not None or report.value else "--config"
            raise UserError(f"{missing} is missing; see --help")
        if baseline.value and not report.value:
            raise UserError(f"--baseline={baseline.value} is of the report: pass --report, too")
        if grid is None and (cells.value or dry.value):
            raise UserError("--cells and --dry-run are of a grid: pass --config, too")
        out = pathlib.Path(output.value)
        status = 0
        if grid is not None:
            units = Share.parse("--cells", cells.value or "0/1").of(units_of(grid))
            if dry.value:
                return show(units, out)
            try:
                totals = run_grid(grid, units, out, say)
            except KeyboardInterrupt:
                say("stopped; what was done is kept. Run the same command to go on.")
                signals.leave(signals.status())
            say(str(totals))
            status = 1 if totals.failed else 0
        if report.value:
            from uniadapter_jax.benchmark.report import write_report  # draws, which only this needs

            write_report(out, baseline.value)
            say(f"look at {out / 'report' / 'index.html'}")
        return status

    run_app(command)


if __name__ == "__main__":
    main()
