"""Processes whose devices interleave along the mesh, as hosts do on TPU slices, count as one."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import small_run
from test_processes import fork_all

TASKS = {
    "retrieval": ("cross_modal_adapter", "retrieval", ()),
    "matching": ("uniadapter", "matching", ("--config.method.bottleneck=4",)),
    "rank": ("uniadapter", "vqa", ("--config.method.bottleneck=4",)),
    "generate": (
        "uniadapter",
        "vqa",
        ("--config.method.bottleneck=4", "--config.task.inference=generate"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """`order` are the devices along the mesh, of which each process has two in a row."""

    order: tuple[int, ...]
    flags: tuple[str, ...] = ()

    @property
    def processes(self):
        return len(self.order) // 2

    def run(self, small, task, workdir):
        """The command on all its processes."""
        jobs = fork_all(
            small, self.processes, *arguments(small, task, workdir, *self.flags), order=self.order
        )
        for job in jobs:
            job.end(0, seconds=300)


IN_TURN = (0, 2, 1, 3)  # processes 0 1 0 1
# Processes 0 1 1 0 3 3 2 2: every second of v5e:4x4.
V5E = (0, 2, 3, 1, 6, 7, 4, 5)
FOUR_IN_TURN = (0, 2, 4, 6, 1, 3, 5, 7)
FSDP = ("--config.mesh.fsdp=2", "--config.mesh.weights=sharded")
TENSOR = ("--config.mesh.tensor=2",)
LAYOUTS = {
    "2x2 data": Layout(IN_TURN),
    "2x2 fsdp": Layout(IN_TURN, FSDP),
    "2x2 tensor": Layout(IN_TURN, TENSOR),
    "2x2 tensor alone": Layout(IN_TURN, ("--config.mesh.tensor=2", "--config.mesh.fsdp=2")),
    "4x2 data": Layout(V5E),
    "4x2 fsdp": Layout(V5E, FSDP),
    "4x2 tensor": Layout(V5E, TENSOR),
    "4x2 in turn, tensor": Layout(FOUR_IN_TURN, TENSOR),
    "4x2 in turn, both": Layout(FOUR_IN_TURN, (*FSDP, *TENSOR)),
}
# By day test_blip_runs has two processes whose devices interleave.
pytestmark = pytest.mark.slow
CASES = [(layout, task) for task in TASKS for layout in LAYOUTS]


def arguments(small, task, workdir, *flags):
    method, name, its = TASKS[task]
    return small.arguments(f"--workdir={workdir}", *its, *flags, method=method, task=name)


@pytest.fixture(scope="module")
def alone(small, whole):
    """Task -> the workdir of its run on one device, made when first asked for."""

    def workdir(task):
        place = whole if task == "retrieval" else small.root / f"alone-{task}"
        if not place.exists():
            small.fork(*arguments(small, task, place)).end(0, seconds=300)
        return place

    return workdir


def answers(workdir):
    """(question, answers) of a run, and their scores."""
    lines = (workdir / "answers-test.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    texts = [(line["question_id"], [a["answer"] for a in line["answers"]]) for line in found]
    return texts, [a["score"] for line in found for a in line["answers"]]


@pytest.mark.parametrize(("layout", "task"), CASES)
def test_count_as_one_device(small, alone, layout, task):
    expected, workdir = alone(task), small.root / f"{layout}-{task}"
    LAYOUTS[layout].run(small, task, workdir)
    losses = small_run.losses(workdir)
    assert len(losses) == small_run.STEPS
    np.testing.assert_allclose(losses, small_run.losses(expected), rtol=1e-5)
    here, there = small_run.result(workdir), small_run.result(expected)
    assert here["processes"] == LAYOUTS[layout].processes
    assert here["metrics"] == there["metrics"]
    assert here.get("ranks") == there.get("ranks")
    if TASKS[task][1] == "vqa":
        (texts, scores), (wanted, near) = answers(workdir), answers(expected)
        assert texts == wanted
        np.testing.assert_allclose(scores, near, atol=2e-5)
    else:
        assert len(here["ranks"]["t2v"]) == here["texts"]
