"""Any number of devices and processes gives the same numbers, and processes must agree."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import small_run
from ml_collections import ConfigDict
from small_run import OFTEN, PATIENCE

from uniadapter_jax.adapters.registry import METHODS as ALL
from uniadapter_jax.runs.assembly import build
from uniadapter_jax.runs.loop import fit
from uniadapter_jax.tasks.retrieval import metrics, scoring
from uniadapter_jax.tasks.retrieval.evaluator import RetrievalEvaluator

METHOD = "projection"  # by day: no collective knows the method


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fork_all(small, count, *arguments, last=(), devices=2, **options):
    """So many processes of one run; `last` are flags of the last only."""
    together = (f"--coordinator=127.0.0.1:{free_port()}", f"--num-processes={count}")
    return [
        small.fork(*arguments, *together, f"--process-id={i}", *own, devices=devices, **options)
        for i, own in enumerate([()] * (count - 1) + [last])
    ]


def start_two(small, *arguments, second=(), devices=2, **options):
    """Two processes of one run; `second` are flags of the second only, as are the options."""
    together = (f"--coordinator=127.0.0.1:{free_port()}", "--num-processes=2")
    return [
        small.start(*arguments, *together, f"--process-id={i}", *own, devices=devices, **its)
        for i, own, its in ((0, (), {}), (1, second, options))
    ]


@pytest.fixture(scope="module")
def runs(small):
    """{devices: workdir} on one device and on eight, at once."""
    workdirs = {devices: small.root / f"{METHOD}-on-{devices}" for devices in (1, 8)}
    jobs = {
        devices: small.fork(*small.arguments(f"--workdir={place}", method=METHOD), devices=devices)
        for devices, place in workdirs.items()
    }
    for devices, job in jobs.items():
        said = job.end(0, seconds=300)
        assert f"mesh {{'data': {devices}, 'fsdp': 1, 'tensor': 1}}, {devices} x cpu" in said
    return workdirs


def assert_same_numbers(workdir, expected):
    np.testing.assert_allclose(small_run.losses(workdir), small_run.losses(expected), rtol=1e-5)
    there, here = small_run.result(expected), small_run.result(workdir)
    assert here["query_ids"] == there["query_ids"]
    moved = {
        way: np.flatnonzero(np.not_equal(here["ranks"][way], there["ranks"][way]))
        for way in ("t2v", "v2t")
    }
    if any(queries.size for queries in moved.values()):
        close = close_pairs(expected)
        unexplained = {way: set(q.tolist()) - set(close[way][:, 0]) for way, q in moved.items()}
        assert not any(unexplained.values()), (unexplained, close)


def close_pairs(workdir):
    """Pairs whose scores differ by less than 1e-6, in the run of one device."""
    config = ConfigDict(small_run.result(workdir)["config"])
    experiment = build(config)
    evaluator = RetrievalEvaluator(experiment)
    trainable = fit(experiment, workdir, evaluator).trainable
    encoder = evaluator.encoder
    test, task = experiment.data.test, experiment.config.task
    captions = [caption for clip in test.captions for caption in clip]
    item = np.repeat(np.arange(len(test)), [len(clip) for clip in test.captions])
    score = scoring.score(
        encoder.texts(trainable, captions),
        *encoder.clips(trainable, test),
        similarity=task.similarity,
        temperature=task.temperature,
    )
    return metrics.close_pairs(score, item, rel=1e-6, v2t=task.v2t)


def test_eight_devices_count_as_one(runs):
    """The last batches are never full: 9 test clips, 13 texts."""
    assert_same_numbers(runs[8], runs[1])


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted({*ALL} - {METHOD, "uniadapter"}))
def test_eight_devices_count_as_one_with_any_method(small, method):
    places = {devices: small.root / f"{method}-on-{devices}" for devices in (1, 8)}
    for devices, place in places.items():
        small.run(f"--workdir={place}", method=method, devices=devices)
        assert bool(small_run.lines(place)) == (method != "zero_shot")
    assert_same_numbers(places[8], places[1])


def test_two_processes_count_as_one(small, whole):
    """With another shape of the mesh; started by launch/local.py."""
    arguments = small.arguments("--workdir=two", "--config.mesh.fsdp=2")
    command = [sys.executable, small_run.ROOT / "launch/local.py", "--processes=2", "--devices=2"]
    done = subprocess.run(
        [*command, "--", *arguments],
        env=os.environ | small.environment(2),
        cwd=small.root,
        capture_output=True,
        text=True,
        timeout=300 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    said = [line.partition(" ") for line in done.stdout.splitlines() if "peer ranks" not in line]
    first, second = ([text for index, _, text in said if index == f"[{i}]"] for i in (0, 1))
    assert "mesh {'data': 2, 'fsdp': 2, 'tensor': 1}, 4 x cpu" in "\n".join(first)
    assert [re.sub(r"\d+", "N", text) for text in second] == [
        "process id N",
        "ended with status N",
    ]
    workdir = small.root / "two"
    assert_same_numbers(workdir, whole)
    assert small_run.result(workdir)["processes"] == 2
    assert small_run.checkpoint(workdir).keys() == small_run.checkpoint(whole).keys()


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_stopped_and_killed_processes_lose_nothing(small, runs, count):
    """SIGTERM to one of `count`, then SIGKILL to one of 2 x 4; one process ends the run."""
    workdir = small.root / f"torn-{count}"
    arguments = small.arguments(f"--workdir={workdir}", OFTEN, method=METHOD)
    metrics_file = workdir / "metrics.jsonl"

    def lines():
        return metrics_file.read_text().count("\n") if metrics_file.exists() else 0

    first = fork_all(small, count, *arguments, devices=8 // count)
    first[0].await_(lambda: lines() >= 1, seconds=200)
    first[count // 2].signal(signal.SIGTERM)
    began = time.monotonic()
    said = [job.end(0) for job in first]
    assert time.monotonic() - began < 30 * PATIENCE
    step = max(small_run.checkpoint_steps(workdir))
    assert f"stopped at step {step} of {small_run.STEPS}; saved" in said[0]
    assert not (workdir / "result.json").exists()

    two = fork_all(small, 2, *arguments, devices=4)
    two[0].await_(lambda: lines() > step, seconds=200)
    two[1].signal(signal.SIGKILL)
    began = time.monotonic()
    said = two[0].end(1)
    assert time.monotonic() - began < 60 * PATIENCE
    assert f"resumed from step {step}" in said
    (report,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert re.search(r"^error: process 1 \(.*process id \d+\) is gone", report)

    small.run(f"--workdir={workdir}", OFTEN, method=METHOD, devices=8)
    assert_same_numbers(workdir, runs[1])
    torn, whole = small_run.checkpoint(workdir), small_run.checkpoint(runs[8])
    assert torn.keys() == whole.keys()
    for name in whole:
        # Sums over processes round in another order than those over devices of one.
        bound = 5e-6 * np.abs(whole[name]).max()
        np.testing.assert_allclose(torn[name], whole[name], rtol=0, atol=bound, err_msg=name)


def test_two_that_disagree_stop_with_every_difference(small):
    """Config, data, and the code itself."""
    code = small.root / "other_code"
    shutil.copytree(small_run.ROOT / "uniadapter_jax", code / "uniadapter_jax")
    (code / "uniadapter_jax/planning/flops.py").open("a").write("# edited\n")
    records = small.root / "other_records"
    shutil.copytree(small.records, records)
    index = records / "index-train.jsonl"
    index.write_text(index.read_text().replace("red disc", "dull disc"))
    marks = json.loads((records / "prepare.json").read_text())
    del marks["files"], marks["sha256"]  # else the change would be damage
    (records / "prepare.json").write_text(json.dumps(marks))
    second = (
        *("--config.seed=1", "--config.optimizer.lr=0.5", "--config.train.batch_size=4"),
        f"--config.data.records={records}",
    )
    jobs = start_two(small, *small.arguments("--workdir=quarrel"), second=second, code=code)
    for job in jobs:
        said = job.end(2, seconds=60)
        report = said[said.index("error: ") :]
        assert "the processes disagree" in report and "Traceback" not in said
        assert "seed: process 0 has 0, process 1 has 1" in report
        assert "optimizer.lr: process 0 has 0.001, process 1 has 0.5" in report
        assert "batch_size: process 0 has 8, process 1 has 4" in report
        assert re.search(r"\n  data.records: process 0 has '\w{64}', process 1 has", report)
        assert re.search(r"\n  code: process 0 has '\w{64}', process 1 has '\w{64}'", report)
        assert re.search(r"\n  code revision: process 0 has '\w{40}', process 1 has None", report)
        assert "data.test" not in report
    assert not list((small.root / "quarrel").glob("*"))


def test_who_does_not_come_is_named(small):
    flags = (f"--coordinator=127.0.0.1:{free_port()}", "--initialization-timeout=1")
    first = small.fork(*small.arguments(*flags, "--num-processes=3", "--process-id=0"))
    report = first.end(2)
    assert "2 of 3 processes are missing: 1, 2. Here are process 0 (" in report
    alone = small.fork(*small.arguments(*flags, "--num-processes=3", "--process-id=1"))
    assert f"error: process 0 does not answer at {flags[0]} for 1 s" in alone.end(2)


def test_an_error_of_one_is_told_by_both(small):
    last = ("--config.backbone=nowhere",)
    jobs = fork_all(small, 2, *small.arguments("--workdir=quarrel"), last=last)
    for job in jobs:
        said = job.end(2, seconds=60)
        assert re.search(r"error: process 1: config.backbone=nowhere: there is no such", said), said


def test_one_that_fails_alone_takes_the_other_along(small):
    """The first cannot write its checkpoints; the second is not left waiting for it."""
    arguments = small.arguments("--workdir=alone", method=METHOD)
    (small.root / "alone" / "metrics.jsonl").mkdir(parents=True)
    first, second = fork_all(small, 2, *arguments)
    assert "metrics.jsonl" in first.end(seconds=90)
    second.end(seconds=90)
    assert first.wait(0) != 0 and second.wait(0) != 0
