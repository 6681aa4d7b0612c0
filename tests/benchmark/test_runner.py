"""A whole grid by the command: cells, failures, kills, shares."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import small_run

from uniadapter_jax.benchmark.records import read_cells, read_grid
from uniadapter_jax.benchmark.report import write_report
from uniadapter_jax.common.files import unsealed

GRID = """
from uniadapter_jax.benchmark.grid import base_grid, row, setting


def get_config(argument=None):
    grid = base_grid("small")
    fields = ("data.val=6", "train.steps=4", "train.checkpoint_every=2")
    grid.settings.clips = setting({config!r}, *fields)
    {rows}
    grid.seeds = {seeds}
    grid.trials = ("optimizer.lr=0.001", "optimizer.lr=0.01")
    return grid
"""
ZERO = 'grid.rows.zero_shot = row("zero_shot")'
WRONG = """grid.rows.wrong = row("lora", "method.targets=('nope',)")"""
THREE = f"""{ZERO}
    grid.rows.projection = row("projection")
    grid.rows.lora = row("lora", trials=("optimizer.lr=1e39", "optimizer.lr=0.001"), size="rank")
    grid.budgets = (2000,)"""


def write_grid(small, name, rows, seeds):
    path = small.root / f"{name}.py"
    path.write_text(GRID.format(config=str(small.config), rows=rows, seeds=seeds))
    return path


def start(small, grid, out, *flags):
    command = [sys.executable, "-m", "uniadapter_jax.benchmark"]
    return subprocess.Popen(
        [*command, f"--config={grid}", f"--output={out}", *flags],
        env=os.environ | small.environment(1),
        stderr=subprocess.PIPE,
        text=True,
    )


def cells(out):
    """{(row, seed): cell} of all that are there, each of them sealed."""
    found = {}
    for path in sorted((out / "results").glob("*/*.json")):
        cell, has_seal = unsealed(json.loads(path.read_text()), path)
        assert has_seal
        found[cell["row"], cell["seed"]] = cell
    return found


def lasting(cell):
    """What of a cell does not depend on when and how fast it ran."""
    names = ("setting", "row", "seed", "quality", "curve", "trials", "chosen", "evaluations", "key")
    return {name: cell[name] for name in names} | {"step_flops": cell["cost"]["step_flops"]}


def test_a_grid_with_a_row_that_fails(small, tmp_path):
    grid = write_grid(small, "fails", f"{ZERO}\n    {WRONG}", (0,))
    job = start(small, grid, tmp_path / "out")
    said = job.communicate(timeout=300 * small_run.PATIENCE)[1]
    assert job.returncode == 1, said
    assert "1 cells done, 0 done before, 1 failed" in said
    made = cells(tmp_path / "out")
    still, wrong = made["zero_shot", 0], made["wrong", 0]
    assert wrong["train_info"]["status"] == "failed"
    assert "no linear layer ends in 'nope'" in wrong["run_info"]["error_msg"]
    assert still["train_info"]["status"] == "success" and still["trials"] == []
    assert still["evaluations"] == {"test": 1}
    assert len(still["quality"]["ranks"]["t2v"]) == len(still["quality"]["query_ids"]["t2v"])
    assert still["cost"]["step_flops"] is None and still["cost"]["peak_memory_bytes"] > 10**8
    assert read_grid(tmp_path / "out").rows == ("zero_shot", "wrong")
    assert [(c.row, c.family, c.failed) for c in read_cells(tmp_path / "out")] == [
        ("wrong", "CLIP", True),
        ("zero_shot", "CLIP", False),
    ]


@pytest.fixture(scope="module")
def undisturbed(small, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    grid = write_grid(small, "three", THREE, (0, 1))
    job = start(small, grid, out)
    said = job.communicate(timeout=900 * small_run.PATIENCE)[1]
    assert job.returncode == 0, said
    return grid, out, said


@pytest.mark.slow
def test_the_best_candidate_is_tested_once(small, undisturbed):
    grid, out, _ = undisturbed
    made = cells(out)
    names = ("lora", "lora@2000", "projection")
    assert list(made) == [*((name, seed) for name in names for seed in (0, 1)), ("zero_shot", 0)]
    assert made["lora@2000", 0]["train_info"]["num_trainable_params"] <= 2000
    for (row, _), cell in made.items():
        assert cell["evaluations"]["test"] == 1
        if row == "zero_shot":
            continue
        tried = {tuple(trial["values"]): trial["value"] for trial in cell["trials"]}
        values = [value for value in tried.values() if value is not None]
        assert len(tried) == 2 and tried[tuple(cell["chosen"])] == max(values)
        assert (len(values) == 1) == (cell["method"] == "lora")
        diverged = [trial["error"] for trial in cell["trials"] if trial["value"] is None]
        assert all("non-finite values" in error for error in diverged)
        assert cell["cost"]["step_flops"] > cell["cost"]["step_useful_flops"] / 2 > 0
        assert cell["train_info"]["file_size"] > 4 * cell["train_info"]["num_trainable_params"]
        assert len(cell["curve"]) >= 1
    before = {path: path.read_bytes() for path in (out / "results").glob("*/*.json")}
    job = start(small, grid, out)
    assert "0 cells done, 7 done before, 0 failed" in job.communicate(timeout=100)[1]
    assert before == {path: path.read_bytes() for path in (out / "results").glob("*/*.json")}


@pytest.mark.slow
def test_kills_and_shares_make_the_same_cells(small, undisturbed, tmp_path):
    """Killed at five moments; then three processes do shares at once, one of them all."""
    grid, out, _ = undisturbed
    right = {name: lasting(cell) for name, cell in cells(out).items()}
    killed = tmp_path / "killed"
    for seconds in (4, 9, 14, 21, 30):
        job = start(small, grid, killed)
        time.sleep(seconds * small_run.PATIENCE)
        job.send_signal(signal.SIGKILL)
        job.communicate()
    job = start(small, grid, killed)
    assert job.communicate(timeout=900 * small_run.PATIENCE) and job.returncode == 0
    assert {name: lasting(cell) for name, cell in cells(killed).items()} == right
    shared = tmp_path / "shared"
    jobs = [start(small, grid, shared, f"--cells={i}/2") for i in (0, 1)]
    jobs.append(start(small, grid, shared))
    for job in jobs:
        assert job.communicate(timeout=900 * small_run.PATIENCE) and job.returncode == 0
    assert {name: lasting(cell) for name, cell in cells(shared).items()} == right
    texts = []
    for made in (out, killed, shared):
        write_report(made)
        names = ("tables.md", "clips.csv", "cells.csv")
        texts.append([(made / "report" / name).read_bytes() for name in names])
    assert texts[0] == texts[1] == texts[2]
