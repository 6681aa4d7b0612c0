"""Runs a grid: unit by unit its trials, then its cells; what is done is not done again.

Several processes may do one grid: each a share, or all of them everything, since a unit that
another process works on is left to it.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from uniadapter_jax.benchmark import jobs, worker
from uniadapter_jax.benchmark.cells import Content, Places, cell, failed_cell, keep, kept, key_of
from uniadapter_jax.benchmark.grid import Fields, Unit, describe
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import sealed, write_json
from uniadapter_jax.common.progress import duration
from uniadapter_jax.runs.workdir import InUse, holding


class Totals(NamedTuple):
    """Counts of cells: done now, done before, failed, and left to other processes."""

    done: int = 0
    before: int = 0
    failed: int = 0
    elsewhere: int = 0

    def __str__(self) -> str:
        return (
            f"{self.done} cells done, {self.before} done before, {self.failed} failed, "
            f"{self.elsewhere} at work in other processes"
        )


def run_grid(
    grid: ConfigDict, units: Sequence[Unit], out: pathlib.Path, say: Callable[[str], None]
) -> Totals:
    """Does some units of a grid; writes their cells below `out`.

    Raises:
      UserError: `out` cannot be written.
      KeyboardInterrupt: asked to stop; the same call goes on.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "grid.json", sealed(describe(grid)))
    total = Totals()
    began = time.monotonic()
    for number, unit in enumerate(units, 1):
        mark = f"[{number}/{len(units)}] {unit.setting}/{unit.name}"
        try:
            with holding(Places(out, unit).folder, "a benchmark"):
                counts = _UnitRun(grid.name, unit, out, mark, say).do()
        except InUse:
            counts = Totals(elsewhere=len(unit.seeds))
            say(f"{mark}: another process is at it")
        total = Totals(*map(sum, zip(total, counts, strict=True)))
        if total.done and number < len(units):
            left = (time.monotonic() - began) / number * (len(units) - number)
            say(f"{number} of {len(units)} rows, ETA {duration(left)}")
    return total


class _UnitRun:
    """The trials and cells of one unit."""

    def __init__(
        self, grid: str, unit: Unit, out: pathlib.Path, mark: str, write: Callable[[str], None]
    ):
        self.grid, self.unit, self.mark, self.write = grid, unit, mark, write
        self.places = Places(out, unit)

    def say(self, text: str) -> None:
        self.write(f"{self.mark}: {text}")

    def do(self) -> Totals:
        """Does what is missing."""
        chosen: Fields = ()
        try:
            chosen, trials = self._choose()
            keys = {seed: key_of(self.unit, chosen, seed) for seed in self.unit.seeds}
        except UserError as error:
            self.say(f"failed: {error}")
            for seed in self.unit.seeds:
                self._fail(chosen, seed, "", str(error))
            return Totals(failed=len(self.unit.seeds))
        before, made = 0, []
        for seed, key in keys.items():
            found = kept(self.places.cell(seed), key)
            if found is not None and found["train_info"]["status"] == "success":
                before += 1
            else:
                made.append(self._cell(chosen, seed, key, trials))
        return Totals(done=made.count(True), before=before, failed=made.count(False))

    def _choose(self) -> tuple[Fields, list[Content]]:
        """(the assignments of the best candidate, all trials).

        Raises:
          UserError: one could not be tried, or all diverge.
        """
        sized = self._size()
        candidates = [(*sized, *candidate) for candidate in self.unit.candidates]
        if not self.unit.trials:
            return candidates[0], []
        trials = [self._trial(candidate) for candidate in candidates]
        values = [trial["value"] for trial in trials]
        known = [value for value in values if value is not None]
        if not known:
            reasons = "; ".join(dict.fromkeys(str(trial["error"]) for trial in trials))
            raise UserError(f"all candidates diverge: {reasons}")
        return candidates[values.index(max(known))], trials

    def _size(self) -> Fields:
        """The option that the unit's budget sets, if it has one."""
        if self.unit.budget is None:
            return ()
        path, key = self.places.folder / "size.json", key_of(self.unit, (), self.unit.seeds[0])
        found = kept(path, key)
        if found is None:
            made = worker.call(jobs.size_within, self.unit, log=self.places.folder / "log.txt")
            if made.error:
                raise UserError(made.error)
            found = keep(path, key, {"size": made.value})
        return (f"{self.unit.size}={found['size']}",)

    def _trial(self, candidate: Fields) -> Content:
        workdir = self.places.workdir(candidate, self.unit.seeds[0])
        key, path = key_of(self.unit, candidate, self.unit.seeds[0]), workdir / "trial.json"
        found = kept(path, key)
        if found is None:
            arguments = (self.unit, candidate, str(workdir))
            outcome = worker.call(jobs.try_candidate, *arguments, log=workdir / "log.txt")
            if outcome.error:
                raise UserError(f"the trial of {' '.join(candidate)}: {outcome.error}")
            found = keep(path, key, {"values": list(candidate), **outcome.value})
            told = found["error"] or f"{found['value']:.2f} on validation data"
            self.say(f"{' '.join(candidate)}: {told}")
        return {name: found[name] for name in ("values", "value", "error")}

    def _cell(self, chosen: Fields, seed: int, key: str, trials: Sequence[Content]) -> bool:
        """Runs and measures one cell; returns whether that worked."""
        workdir = self.places.workdir(chosen, seed)
        arguments = (self.unit, chosen, seed, str(workdir))
        outcome = worker.call(jobs.train, *arguments, log=workdir / "log.txt")
        costs: Content = {}
        if not outcome.error:
            costs, error = self._costs(chosen)
            outcome = outcome._replace(error=error)
        if outcome.error:
            self.say(f"seed {seed} failed: {outcome.error}")
            self._fail(chosen, seed, key, outcome.error)
            return False
        memory = outcome.value
        made = cell(
            self.grid, self.places, chosen, seed, trials=trials, costs=costs, peak_memory=memory
        )
        keep(self.places.cell(seed), key, made)
        group, values = next(iter(made["quality"]["metrics"].items()), ("", {}))
        shown = "  ".join(f"{name} {value:.1f}" for name, value in list(values.items())[:3])
        self.say(f"seed {seed}: {group} {shown}, {duration(made['run_info']['total_time'])}")
        return True

    def _costs(self, chosen: Fields) -> tuple[Content, str]:
        """(costs of the compiled step, why there are none); the same for all seeds."""
        path = self.places.folder / "costs.json"
        key = key_of(self.unit, chosen, self.unit.seeds[0])
        found = kept(path, key)
        if found is not None:
            return found, ""
        made = worker.call(jobs.costs, self.unit, chosen, log=self.places.folder / "log.txt")
        return (keep(path, key, made.value), "") if not made.error else ({}, made.error)

    def _fail(self, chosen: Fields, seed: int, key: str, reason: str) -> None:
        try:
            failed = failed_cell(self.grid, self.places, chosen, seed, reason)
        except UserError:  # its config is what is wrong
            return
        keep(self.places.cell(seed), key, failed)
