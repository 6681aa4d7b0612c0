"""Grids: their rows, shares and commands, before anything runs."""

from __future__ import annotations

import json
import pathlib
import runpy
import shlex

import pytest
import small_run
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from uniadapter_jax.adapters.registry import METHODS
from uniadapter_jax.benchmark.grid import (
    assign,
    base_grid,
    claim,
    describe,
    parts,
    row,
    setting,
    settings_of,
    units_of,
)
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.config import base_config, validate
from uniadapter_jax.planning.abstract import abstract_partition
from uniadapter_jax.weights.directory import read_config

CONFIG = """
from uniadapter_jax.config import base_config, parse_argument


def get_config(argument=None):
    chosen = parse_argument(argument, method="lora", task="retrieval")
    return base_config(chosen["method"], chosen["task"])
"""


@pytest.fixture
def grid(tmp_path):
    file = tmp_path / "base.py"
    file.write_text(CONFIG)
    grid = base_grid("test")
    grid.settings.clips = setting(str(file), "data.val=5", "train.steps=3", title="Clips")
    grid.settings.asked = setting(str(file), argument="task=vqa")
    grid.rows.zero_shot = row("zero_shot")
    grid.rows["lora-4"] = row("lora", "method.rank=4", size="rank")
    grid.rows.full = row(
        "full", trials=("optimizer.lr=1e-6 optimizer.warmup=0.0", "seed=1", "seed=2")
    )
    grid.budgets = (3000, 9000)
    return grid


def test_rows_stay_in_order_and_budgets_are_rows(grid):
    units = units_of(grid)
    names = ["zero_shot", "lora-4", "lora-4@3000", "lora-4@9000", "full"]
    assert [(u.setting, u.name) for u in units] == [
        (s, n) for s in ("clips", "asked") for n in names
    ]
    still, low, _, _, full = units[:5]
    assert (still.trials, still.seeds) == ((), (0,))
    assert low.trials == (
        ("optimizer.lr=0.0003",),
        ("optimizer.lr=0.001",),
        ("optimizer.lr=0.003",),
    )
    assert full.trials[0] == ("optimizer.lr=1e-6", "optimizer.warmup=0.0")
    told = describe(grid)
    assert json.loads(json.dumps(told)) == told
    assert told["rows"] == names
    assert told["settings"]["clips"] == {"title": "Clips", "metric": "t2v/R@1"}
    assert told["settings"]["asked"] == {"title": "asked", "metric": "accuracy/overall"}


def test_the_command_of_a_cell_is_the_cell(grid):
    """As `main` reads it."""
    unit = units_of(grid)[1]
    chosen = ("optimizer.lr=0.001",)
    command = shlex.split(unit.command("runs/x", chosen, 2))
    assert command[:3] == ["python", "-m", "uniadapter_jax.main"]
    assert command[-1] == "--workdir=runs/x"
    first, *fields = command[3:-1]
    config = config_flags.ConfigFileFlagParser("config").parse(first.removeprefix("--config="))
    for text in fields:
        assign(config, text.removeprefix("--config."))
    mine = settings_of(unit.config(chosen, 2))
    assert mine | {"name": ""} == settings_of(config) | {"name": ""}
    assert (mine["seed"], mine["optimizer.lr"], mine["method.rank"]) == (2, 0.001, 4)


def test_assignments_have_the_kind_of_the_field():
    config = base_config("lora")
    for text, value in {
        "optimizer.lr=1": 1.0,
        "method.targets=('q','v')": ("q", "v"),
        "data.records=/a=b": "/a=b",
        "train.steps=7": 7,
    }.items():
        assign(config, text)
        node = config
        for name in text.partition("=")[0].split("."):
            node = node[name]
        assert node == value and type(node) is type(value)
    for text, message in {
        "optimizer.rate=1": "no field 'optimizer.rate'",
        "optimizer.lr.x=1": "no field",
        "optimizer.lr": "no value is given",
        "train.steps=many": "is of another kind",
        "train.steps=1.5": "is of another kind",
    }.items():
        with pytest.raises(UserError, match=message):
            assign(config, text)


def change(grid, **changes):
    for name, value in changes.items():
        grid[name] = value


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda g: g.rows.update({"a/x": row("lora")}), r"rows: 'a/x' is to name a directory"),
        (lambda g: change(g, seeds=(1, 1)), "at least one, each once"),
        (
            lambda g: g.rows.update({"two": row("lora", trials=("seed=1",))}),
            "1 candidates, the grid",
        ),
        (lambda g: change(g, claims=(claim("c", "s", "lora", "full"),)), "names the row 'lora'"),
        (lambda g: g.rows.update({"new": row("nope")}), "'nope' is not known"),
        (lambda g: change(g, rows=ConfigDict()), "no rows"),
    ],
)
def test_a_wrong_grid_says_what(grid, act, message):
    act(grid)
    with pytest.raises(UserError, match=message):
        units_of(grid)


def test_a_config_file_that_is_none(grid, tmp_path):
    unit = units_of(grid)[0]
    for text, message in ((None, "no such config file"), ("x = 1", "defines no get_config")):
        file = pathlib.Path(grid.settings.clips.config)
        file.unlink(missing_ok=True)
        if text:
            file.write_text(text)
        with pytest.raises(UserError, match=message):
            unit.config((), 0)


@pytest.mark.parametrize(
    "file", sorted((small_run.ROOT / "configs/benchmark").glob("*.py")), ids=lambda file: file.stem
)
def test_every_grid_of_ours_is_one(file):
    made = runpy.run_path(str(file))["get_config"](None)
    for unit in units_of(made):
        for candidate in unit.candidates:
            validate(unit.config(candidate, 0))
    named = {name for one in made.claims for name in (one.row, one.than)}
    assert {made.baseline, *named} <= {*made.rows}


# The config.json of each folder of weights that a script trains from scratch.
TRAINED = {
    "clip-mini": "mini_clip",
    "clip-deep": "deep_clip",
    "blip-mini": "mini_blip",
    "blip": "small_blip",  # of easy-VQA
}


def sizes_of(config):
    """The sizes of the backbone that a config names."""
    name = pathlib.Path(config.backbone).name
    if name not in TRAINED:
        return read_config(pathlib.Path(config.backbone, "config.json"))
    return read_config(small_run.ROOT / f"configs/backbones/{TRAINED[name]}.json")


@pytest.mark.parametrize(
    ("grid", "argument"),
    [
        ("demo", "rows=all"),
        ("depth", "data=clips"),
        ("easy_vqa", None),
        ("emoji", "size=mini,data=clips"),
        ("emoji_blip", "data=clips"),
    ],
)
def test_every_method_of_our_grids_fits_its_backbone(grid, argument):
    """What a run would find out after the grid has begun; demo's takes all methods."""
    made = runpy.run_path(str(small_run.ROOT / f"configs/benchmark/{grid}.py"))["get_config"](
        argument
    )
    methods = set()
    for unit in units_of(made):
        config = unit.config(unit.candidates[0], 0)
        abstract_partition(config, sizes_of(config), "cpu")
        methods.add(config.method.name)
    assert grid != "demo" or methods == set(METHODS) - {"uniadapter"}


def test_an_argument_asks_for_parts():
    known = {"size": ("mini", "small"), "data": ("pictures", "clips")}
    assert parts(None, **known) == known
    assert parts("data=clips", **known) == {**known, "data": ("clips",)}
    with pytest.raises(UserError, match="size=big: choose mini, small or all"):
        parts("size=big", **known)
    with pytest.raises(UserError, match="'sizes=mini' is not one of size"):
        parts("sizes=mini", **known)
