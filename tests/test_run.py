"""The command from end to end: what it says, what it leaves, and that it can be run again."""

from __future__ import annotations

import json
import pathlib
import re

import jax
import numpy as np
import pytest
import small_run
from test_boards import numbers, settings

RESULTS = pathlib.Path(small_run.ROOT, "docs", "results.md").read_text()
FLAGS = ("--config.data.val=6",)


def documented(heading):
    """The keys in the tables below a heading of docs/results.md."""
    section = RESULTS.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    return {key for cell in cells for key in re.findall("`([^`]+)`", cell)}


@pytest.fixture(scope="module")
def finished(small):
    """(workdir, backbone directory, output) of full fine-tuning, started as a user does."""
    workdir, saved = small.root / "full", small.root / "saved"
    arguments = small.arguments(*FLAGS, "--workdir=full", method="full")
    said = small.start(*arguments, "--save-backbone", "saved").end(0)
    return workdir, saved, said


def test_every_field_is_documented_and_there(finished):
    workdir, _, _ = finished
    assert set(small_run.result(workdir)) == documented("result.json")
    steps = small_run.lines(workdir)
    assert {key for line in steps for key in line} - {"kind", "step"} == documented("metrics.jsonl")
    assert len(small_run.losses(workdir)) == small_run.STEPS
    files = {path.name for path in workdir.iterdir()}
    named = set(re.findall(r"^\| `([a-z.]+)", RESULTS, re.MULTILINE)) - documented("result.json")
    assert files == {name for name in named if name in files} and len(files) == 6


def test_the_result_is_what_was_asked(finished):
    workdir, _, _ = finished
    found = small_run.result(workdir)
    assert found["method"] == "full" and found["selection"] == "val" and found["processes"] == 1
    assert found["parameters"]["percent"] == 100.0
    assert found["total_steps"] == small_run.STEPS
    assert found["data"]["coverage"]["found"] == found["clips"] == len(found["ranks"]["v2t"]) == 9
    assert len(found["query_ids"]["t2v"]) == len(found["ranks"]["t2v"]) == found["texts"] == 13
    assert 0 <= found["data_wait_share"] <= 1
    assert found["final_loss"] == small_run.losses(workdir)[-1]
    assert found["config"]["selection"] == "val"
    assert json.loads((workdir / "config.json").read_text()) == found["config"]
    assert found["versions"]["jax"] == jax.__version__


def test_tensorboard_shows_the_result(finished):
    workdir, _, _ = finished
    found = small_run.result(workdir)
    shown = {tag: (step, value) for tag, step, value in numbers(workdir)}
    for way, metrics in found["metrics"].items():
        for name, value in metrics.items():
            assert shown[f"final/{way}/{name}".replace("@", "_")] == (found["step"], value)
    assert shown["final/loss"] == (found["step"], found["final_loss"])
    (session,) = settings(workdir)
    assert session["method.name"] == "full" and session["optimizer.lr"] == 1e-3


def test_validation_clips_choose_the_checkpoint(finished):
    workdir, _, said = finished
    assert "clips: train 20, val 6, test 9" in said
    found = small_run.lines(workdir, "val")
    epoch = found[0]["step"]
    assert [line["step"] for line in found][:-1] == list(range(epoch, small_run.STEPS, epoch))
    assert found[-1]["step"] == small_run.STEPS
    best = max(found, key=lambda line: (line["selection"], line["step"]))["step"]
    assert small_run.result(workdir)["step"] == best
    last_two = [line["step"] for line in found[-2:]]
    assert small_run.checkpoint_steps(workdir) == sorted({best, *last_two})


def test_it_says_its_own_lines_only(finished):
    known = (
        r"[+|].*|Total: .*|full: .* parameters train .*|clips: .*|step \d+/\d+ .*|val after .*"
        r"|(train|val|test): \d+ of \d+ captions are cut .*|compiling the training step; .*"
        r"|best on val: .*|validation: each of its .*|full on 9 clips.*"
        r"|  (t2v|v2t)  R@1 .*|  data wait .*|  \d+:\d\d in all"
    )
    assert [line for line in finished[2].splitlines() if not re.fullmatch(known, line)] == []


def test_a_finished_run_evaluates_again(small, finished):
    workdir, _, _ = finished
    before, metrics = small_run.result(workdir), (workdir / "metrics.jsonl").read_bytes()
    said = small.run(*FLAGS, "--workdir=full", method="full")
    assert f"resumed from step {small_run.STEPS}" in said
    after = small_run.result(workdir)
    assert (before["evaluations"], after["evaluations"]) == ({"test": 1}, {"test": 2})
    free = {"seconds": 0, "sha256": "", "evaluations": {}}  # the digest covers all
    assert {**before, **free} == {**after, **free}
    assert (workdir / "metrics.jsonl").read_bytes() == metrics


def test_a_saved_backbone_is_the_trained_one(small, finished):
    workdir, saved, _ = finished
    small.run(f"--config.backbone={saved}", "--workdir=zero", method="zero_shot")
    there, here = small_run.result(workdir), small_run.result(small.root / "zero")
    assert here["metrics"] == there["metrics"] and here["ranks"] == there["ranks"]
    assert here["parameters"]["trained"] == 0 and here["step"] == 0 and here["final_loss"] is None
    assert (saved / "tokenizer.json").read_bytes() == (
        small.records / "tokenizer" / "tokenizer.json"
    ).read_bytes()


def test_a_backbone_is_saved_only_where_one_was_trained(small, finished):
    arguments = small.arguments("--workdir=unborn")
    assert "is for method=full" in small.refused(*arguments, "--save_backbone=elsewhere")
    full = small.arguments("--workdir=unborn", method="full")
    assert "exists and is not empty" in small.refused(*full, "--save-backbone=saved")
    assert not (small.root / "unborn").exists() and not (small.root / "elsewhere").exists()


def test_a_checkpoint_holds_the_trainables_and_their_moments_only(whole):
    state = small_run.checkpoint(whole)
    names = {re.match(r"\['(\w+)'\]", path)[1] for path in state}
    assert names == {"trainable", "opt_state"}
    trained = small_run.result(whole)["parameters"]["trained"]
    assert sum(x.size for p, x in state.items() if p.startswith("['trainable']")) == trained
    assert sum(x.size for p, x in state.items() if p.startswith("['opt_state']")) <= 2 * trained + 8
    step = whole / "checkpoints" / str(small_run.STEPS)
    size = sum(path.stat().st_size for path in step.rglob("*") if path.is_file())
    assert size < 3.3 * 4 * trained + 2e6


def test_help_explains_the_command(small):
    said = small.start("--help").end(0)
    assert "python -m uniadapter_jax.main --config=configs/msrvtt.py" in said
    assert "--workdir" in said and "docs/results.md" in said and "Traceback" not in said


def test_nothing_is_compiled_after_the_first_step(small):
    """Nor by checkpoints and evaluations after the first of each."""
    flags = ("--config.data.val=6", "--config.train.log_every=1", "--workdir=logged")
    said = small.run(*flags, log_compiles=True)
    lines = [line for line in said.splitlines() if re.match(r".*Compiling|step|val after", line)]

    def compiled_between(first, last):
        begin, end = (
            next(i for i, line in enumerate(lines) if line.startswith(text))
            for text in (first, last)
        )
        return [line for line in lines[begin:end] if "Compiling" in line]

    assert any("Compiling" in line and "step_fn" in line for line in lines)
    assert compiled_between("step 1/", "step 2/") == []
    assert "val after step 3:" in said and "val after step 6:" in said
    assert compiled_between("step 4/", f"val after step {small_run.STEPS}:") == []


def test_a_step_that_is_not_finite_stops_the_run_and_is_named(small):
    """Whether the gradient overflows, at the second step, or the update itself, at the first."""

    def stopped_by(lr, workdir):
        flags = (f"--config.optimizer.lr={lr}", "--config.train.checkpoint_every=1")
        return small.refused(*small.arguments(*flags, f"--workdir={workdir}", method="projection"))

    said = stopped_by("1e38", "grown")
    kept = int(re.search(r"non-finite .*projection.kernel.* checkpoint is of step (\d+)", said)[1])
    assert kept == small_run.checkpoint_steps(small.root / "grown")[-1]
    state = small_run.checkpoint(small.root / "grown")
    assert all(np.isfinite(leaf).all() for leaf in state.values())
    assert re.search(
        "step 1: non-finite .*projection.kernel.*none is saved", stopped_by("1e39", "inf")
    )
    assert small_run.checkpoint_steps(small.root / "inf") == []
