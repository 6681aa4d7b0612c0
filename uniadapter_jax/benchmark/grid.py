"""A grid of runs as a config: settings x rows x seeds, with candidates for what a row tunes.

A setting is a config file with a backbone, a task and records; a row is a method with its options.
Every row of a setting that trains tries the same number of candidates, with the first seed, and the
validation split chooses among them; the chosen one then runs with every seed, and is tested.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import pathlib
import runpy
import shlex
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.benchmark.fields import NAME, SCHEMA
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.packaged import packaged
from uniadapter_jax.config import parse_argument, validate
from uniadapter_jax.config.rules import leaves
from uniadapter_jax.tasks.registry import get_task

Fields = tuple[str, ...]  # assignments such as "optimizer.lr=0.001", in order


def base_grid(name: str) -> ConfigDict:
    """A grid with every default; a grid file returns one with settings and rows filled in."""
    grid = ConfigDict()
    grid.name = name
    grid.settings = ConfigDict(sort_keys=False)  # {name: setting(...)}
    grid.rows = ConfigDict(sort_keys=False)  # {name: row(...)}
    grid.seeds = (0, 1, 2)
    # The candidates of a row, each one or more assignments with blanks between.
    grid.trials = ("optimizer.lr=0.0003", "optimizer.lr=0.001", "optimizer.lr=0.003")
    grid.budgets = ()  # numbers of trained parameters: rows with a `size` also run within each
    grid.baseline = "zero_shot"  # the row that the report compares with
    grid.claims = ()  # of `claim(...)`
    return grid


def setting(config: str, *fields: str, argument: str = "", title: str = "") -> ConfigDict:
    """A setting: a config file, its argument beside `method`, and assignments to its fields."""
    return ConfigDict({"config": config, "argument": argument, "fields": fields, "title": title})


def parts(argument: str | None, **known: Sequence[str]) -> dict[str, Sequence[str]]:
    """What the argument behind --config=FILE: asks for, as `data=clips`; of the rest everything.

    known: {part: its names}.

    Raises:
      UserError: the argument names another part, or another name.
    """
    chosen = parse_argument(argument, **dict.fromkeys(known, "all"))
    for part, name in chosen.items():
        if name not in (*known[part], "all"):
            raise UserError(f"{part}={name}: choose {', '.join(known[part])} or all")
    return {part: known[part] if name == "all" else (name,) for part, name in chosen.items()}


def row(method: str, *fields: str, trials: Sequence[str] = (), size: str = "") -> ConfigDict:
    """A row: a method with assignments to fields.

    trials: its own candidates in place of the grid's, as many.
    size: the option that budgets set, such as `rank`.
    """
    return ConfigDict({"method": method, "fields": fields, "trials": tuple(trials), "size": size})


def claim(name: str, statement: str, row: str, than: str, **further: Any) -> ConfigDict:
    """A claim of a paper about two rows, which the report judges.

    further: source; settings (all without); kind "better" or "not_worse"; margin, in points.
    """
    usual = {"source": "", "settings": (), "kind": "better", "margin": 0.0}
    return ConfigDict(
        {"name": name, "statement": statement, "row": row, "than": than, **usual, **further}
    )


@dataclasses.dataclass(frozen=True)
class Unit:
    """A row in a setting: its trials and its cells, which one process does.

    budget: the most parameters that may train, set by the option `size`; None for as many as the
      row says.
    """

    setting: str
    row: str
    file: str
    argument: str
    fields: Fields
    candidates: tuple[Fields, ...]
    seeds: tuple[int, ...]
    size: str = ""
    budget: int | None = None

    @property
    def trials(self) -> tuple[Fields, ...]:
        """The candidates to be tried: none where there is nothing to choose."""
        return self.candidates if len(self.candidates) > 1 else ()

    @property
    def name(self) -> str:
        """The row, as the report names it."""
        return self.row if self.budget is None else f"{self.row}@{self.budget}"

    def config(self, chosen: Fields, seed: int) -> ConfigDict:
        """The config of one run; raises `UserError` that names a wrong assignment."""
        config = _load(self.file, self.argument)
        for text in (*self.fields, *chosen, f"seed={seed}"):
            assign(config, text)
        config.name = f"{self.setting}-{self.name}"
        return config

    def command(self, workdir: str, chosen: Fields, seed: int) -> str:
        """The command that does the same run by hand."""
        where = f"{self.file}:{self.argument}"
        fields = (*self.fields, *chosen, f"seed={seed}")
        words = [f"--config={where}", *(f"--config.{text}" for text in fields)]
        words.append(f"--workdir={workdir}")
        return "python -m uniadapter_jax.main " + " ".join(map(shlex.quote, words))


def units_of(grid: ConfigDict) -> list[Unit]:
    """All units, settings in order and rows within them.

    Raises:
      UserError: a name, a seed, a claim or the number of candidates is wrong; it says which.
    """
    _check(grid)
    units = []
    for (place, where), (name, of) in itertools.product(grid.settings.items(), grid.rows.items()):
        argument = ",".join(filter(None, (f"method={of.method}", where.argument)))
        trains = get_method(of.method).trainable is not None
        candidates = tuple(tuple(text.split()) for text in (of.trials or grid.trials))
        fields = (*where.fields, *of.fields)
        one = Unit(place, name, where.config, argument, fields, candidates, tuple(grid.seeds))
        if not trains:
            one = dataclasses.replace(one, candidates=((),), seeds=one.seeds[:1])
        units.append(one)
        if of.size:
            sized = dataclasses.replace(one, size=f"method.{of.size}")
            units += [dataclasses.replace(sized, budget=int(most)) for most in grid.budgets]
    return units


def assign(config: ConfigDict, text: str) -> None:
    """Sets a field by "path=value"; the value has the type of the field.

    Raises:
      UserError: no such field, or a value of another type.
    """
    path, equals, value = text.partition("=")
    *parents, last = path.split(".")
    node: Any = config
    for name in parents:
        node = node[name] if isinstance(node, ConfigDict) and name in node else None
    if not equals or not isinstance(node, ConfigDict) or last not in node:
        raise UserError(f"{text!r}: the config has no field {path!r}, or no value is given")
    usual = node[last]
    try:
        node[last] = value if isinstance(usual, str) else ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError) as error:
        raise UserError(
            f"{text!r}: config.{path} is {usual!r}, and {value!r} is of another kind"
        ) from error


def describe(grid: ConfigDict) -> dict[str, Any]:
    """The grid as the report reads it, `grid.json`."""
    return {
        "schema": SCHEMA,
        "name": grid.name,
        "settings": {
            name: {"title": of.title or name, "metric": _metric(of, grid)}
            for name, of in grid.settings.items()
        },
        "rows": list(dict.fromkeys(unit.name for unit in units_of(grid))),
        "seeds": list(grid.seeds),
        "baseline": grid.baseline,
        "claims": [
            {**one.to_dict(), "settings": list(one.settings or grid.settings)}
            for one in grid.claims
        ],
    }


def settings_of(config: ConfigDict) -> dict[str, Any]:
    """All fields of a config, flat, as JSON."""
    return {path: list(v) if isinstance(v, tuple) else v for path, v in leaves(validate(config))}


def _metric(of: ConfigDict, grid: ConfigDict) -> str:
    """The metric that the report shows first: the accuracy, or R@1 of the texts."""
    method = next(iter(grid.rows.values())).method
    config = _load(of.config, ",".join(filter(None, (f"method={method}", of.argument))))
    groups = get_task(config.task.name).groups
    group = next(iter(groups))
    return f"{group}/{groups[group][0]}"


def _load(file: str, argument: str) -> ConfigDict:
    """The config that --config=file:argument means; raises `UserError` if there is none."""
    try:
        functions = runpy.run_path(packaged(file))
    except FileNotFoundError:
        raise UserError(f"{file}: no such config file, seen from {pathlib.Path.cwd()}") from None
    if "get_config" not in functions:
        raise UserError(f"{file} defines no get_config, so it is no config file")
    return functions["get_config"](argument)


def _check(grid: ConfigDict) -> None:
    if not grid.settings or not grid.rows:
        raise UserError("the grid has no settings, or no rows")
    for kind in ("settings", "rows"):
        for name in grid[kind]:
            if not NAME.fullmatch(name):
                raise UserError(
                    f"{kind}: {name!r} is to name a directory; use letters, digits and ._+=,@-"
                )
    seeds = list(grid.seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds={tuple(seeds)}: at least one, each once")
    for name, of in grid.rows.items():
        if of.trials and len(of.trials) != len(grid.trials):
            raise UserError(
                f"rows.{name}.trials: {len(of.trials)} candidates, the grid has "
                f"{len(grid.trials)}; every method gets as many"
            )
    for one in grid.claims:
        for name in (one.row, one.than):
            if name not in grid.rows:
                raise UserError(f"claims: {one.name!r} names the row {name!r}, which is not there")
        for name in one.settings:
            if name not in grid.settings:
                raise UserError(f"claims: {one.name!r} names the setting {name!r}: not there")
