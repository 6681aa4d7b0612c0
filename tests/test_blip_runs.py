"""Matching and answering from end to end: any mesh, resumed, exported and loaded again."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import small_run
from test_processes import fork_all

import uniadapter_jax
from uniadapter_jax.export import export

STEPS = 6
FLAGS = (
    f"--config.train.steps={STEPS}",
    "--config.train.checkpoint_every=3",
    "--config.method.bottleneck=4",
)


def arguments(small, task, workdir, *flags):
    return small.arguments(*FLAGS, f"--workdir={workdir}", *flags, method="uniadapter", task=task)


@pytest.fixture(scope="module")
def runs(small):
    """(devices, task) -> the workdir of that run, made when first asked for."""

    @functools.cache
    def workdir(devices, task):
        place = small.root / f"{task}-on-{devices}"
        said = small.fork(*arguments(small, task, place), devices=devices).end(0, seconds=400)
        assert "config.data.resize='crop': a BLIP was trained with 'squash'" in said
        return place

    return workdir


def assert_same_numbers(workdir, expected):
    np.testing.assert_allclose(small_run.losses(workdir), small_run.losses(expected), rtol=3e-5)
    here, there = small_run.result(workdir), small_run.result(expected)
    assert here["metrics"] == there["metrics"]
    assert here.get("ranks") == there.get("ranks")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["matching", "vqa"])
def test_eight_devices_count_as_one(runs, task):
    assert_same_numbers(runs(8, task), runs(1, task))


@pytest.mark.parametrize(
    ("task", "name"), [("matching", "itm_accuracy"), ("vqa", "answer_accuracy")]
)
def test_steps_log_their_accuracy(runs, task, name):
    assert name in small_run.lines(runs(1, task))[-1]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["vqa", "matching"])
def test_processes_that_hold_replicas_in_turn_count_as_one(small, runs, task):
    """Both of the two have a device of every part, and supply all rows."""
    workdir, flags = small.root / f"two-{task}", ("--config.mesh.tensor=2",)
    jobs = fork_all(small, 2, *arguments(small, task, workdir, *flags), order=(0, 2, 1, 3))
    for job in jobs:
        job.end(0, seconds=300)
    assert_same_numbers(workdir, runs(1, task))
    assert answers_of(workdir) == answers_of(runs(1, task))


def answers_of(workdir):
    """Texts of all answers, where there are any."""
    files = sorted(workdir.glob("answers-*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [[answer["answer"] for answer in line["answers"]] for line in lines]


def test_momentum_and_queue_survive_a_kill(small, runs):
    place = small.root / "blip_killed"
    job = small.fork(*arguments(small, "matching", place, "--config.train.log_every=1"))
    job.await_(lambda: place.is_dir() and 3 in _steps(place), seconds=200)
    job.signal(9)
    job.end()
    small.fork(*arguments(small, "matching", place)).end(0, seconds=200)
    ours, theirs = (small_run.checkpoint(w) for w in (place, runs(1, "matching")))
    assert ours.keys() == theirs.keys() and any("queue" in name for name in ours)
    for name, expected in theirs.items():
        np.testing.assert_array_equal(ours[name], expected, err_msg=name)


def _steps(place):
    return small_run.checkpoint_steps(place) if (place / "checkpoints").is_dir() else []


def test_answers_are_written_for_people_and_for_the_server(runs):
    found = small_run.result(runs(1, "vqa"))
    assert found["questions"] == 13 and found["clips"] == 9
    assert set(found["metrics"]["per_question_type"]) == {"colour", "shape"}
    lines = (runs(1, "vqa") / found["predictions"]).read_text().splitlines()
    first = json.loads(lines[0])
    scores = [answer["score"] for answer in first["answers"]]
    assert len(lines) == 13 and first["question"] and scores == sorted(scores, reverse=True)


def test_an_exported_adapter_gives_the_ranks_of_its_run(small, runs):
    workdir, to = runs(1, "matching"), small.root / "blip_exported"
    export(workdir, to)
    assert "on BLIP" in (to / "README.md").read_text()
    model = uniadapter_jax.load_model(f"random:{small.blip}", to)
    assert model.task["frame_weights"] is True
    text = model.encode_text(["a red disc number 1", "box in blue"])
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1.0, rtol=1e-5)


def test_what_does_not_fit_is_refused(small):
    said = small.refused(
        *small.arguments(
            "--workdir=none", f"--config.backbone=random:{small.backbone}", task="matching"
        )
    )
    assert "is a task for a BLIP" in said and "is a CLIP" in said
    said = small.refused(*arguments(small, "matching", "none", "--config.task.queue=20"))
    assert "config.task.queue=20 does not divide by the batch of 8" in said
    said = small.refused(*small.arguments("--workdir=none", method="coop", task="matching"))
    assert "does not fit this backbone" in said


def test_a_loaded_model_answers(small, runs):
    to = small.root / "answering"
    export(runs(1, "vqa"), to)
    model = uniadapter_jax.load_model(f"random:{small.blip}", to)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 50, 3)).astype(np.uint8)
    asked = ["What colour is it?", "Is it a disc?"]
    ranked = model.answer(pixels, asked, answers=["red", "blue", "yes"], top=2)
    assert [len(best) for best in ranked] == [2, 2]
    assert all(best[0][1] >= best[1][1] for best in ranked)
    assert {text for best in ranked for text, _ in best} <= {"red", "blue", "yes"}
    written = model.answer(pixels[:1], asked[:1])
    assert len(written) == 1 and np.isfinite(written[0][0][1])
