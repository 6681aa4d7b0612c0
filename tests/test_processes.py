"""Any number of devices and processes gives the same numbers, and processes must agree."""

from __future__ import annotations

import re
import signal
import socket

import numpy as np
import pytest
import small_run
from ml_collections import ConfigDict

from uniadapter_jax import metrics, scoring
from uniadapter_jax.evaluate import RetrievalEvaluator
from uniadapter_jax.experiment import build
from uniadapter_jax.train import fit

ADAPTER = "cross_modal_adapter"
METHODS = (ADAPTER, "lora", "full", "projection", "zero_shot")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_two(small, *arguments, second=(), devices=2):
    """Two processes of one run; `second` are flags of the second only."""
    together = (f"--coordinator=127.0.0.1:{free_port()}", "--num-processes=2")
    return [
        small.start(*arguments, *together, f"--process-id={i}", *own, devices=devices)
        for i, own in enumerate(((), second))
    ]


@pytest.fixture(scope="module")
def runs(small, whole):
    """{(devices, method): workdir} on one device and on eight, all at once."""
    workdirs = {(d, m): small.root / f"{m}-on-{d}" for d in (1, 8) for m in METHODS}
    del workdirs[1, ADAPTER]
    jobs = {
        key: small.fork(*small.arguments(f"--workdir={place}", method=key[1]), devices=key[0])
        for key, place in workdirs.items()
    }
    for (devices, _), job in jobs.items():
        said = job.end(0, seconds=300)
        assert f"mesh {{'data': {devices}, 'fsdp': 1, 'tensor': 1}}, {devices} x cpu" in said
    return {**workdirs, (1, ADAPTER): whole}


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


@pytest.mark.parametrize("method", METHODS)
def test_eight_devices_count_as_one(runs, method):
    """The last batches are never full: 9 test clips, 13 texts."""
    if method == "zero_shot":
        assert not small_run.lines(runs[8, method])
    assert_same_numbers(runs[8, method], runs[1, method])


def test_two_processes_count_as_one(small, runs):
    """With another shape of the mesh."""
    jobs = start_two(small, *small.arguments("--workdir=two", "--config.mesh.fsdp=2"))
    assert "mesh {'data': 2, 'fsdp': 2, 'tensor': 1}, 4 x cpu" in jobs[0].end(0)
    said = jobs[1].end(0).splitlines()
    assert [line for line in said if not line.startswith("[Gloo]")] == []
    workdir, expected = small.root / "two", runs[1, ADAPTER]
    assert_same_numbers(workdir, expected)
    assert small_run.result(workdir)["processes"] == 2
    assert small_run.checkpoint(workdir).keys() == small_run.checkpoint(expected).keys()


def test_sigterm_to_one_of_two_stops_both(small, runs):
    """One process then goes on where the two were."""
    flags = ("--config.train.checkpoint_every=1000", "--workdir=both")
    jobs = start_two(small, *small.arguments(*flags, method="projection"))
    metrics_file = small.root / "both" / "metrics.jsonl"
    jobs[0].await_(lambda: metrics_file.exists() and metrics_file.stat().st_size > 0)
    jobs[1].signal(signal.SIGTERM)
    said = jobs[0].end(0)
    jobs[1].end(0)
    (step,) = small_run.checkpoint_steps(small.root / "both")
    assert f"stopped at step {step} of {small_run.STEPS}; saved" in said
    assert f"resumed from step {step}" in small.run("--workdir=both", method="projection")
    assert_same_numbers(small.root / "both", runs[1, "projection"])


def test_two_that_disagree_stop_with_every_difference(small):
    second = ("--config.seed=1", "--config.optimizer.lr=0.5", "--config.train.batch_size=4")
    jobs = start_two(small, *small.arguments("--workdir=quarrel"), second=second)
    for job in jobs:
        said = job.end(2, seconds=60)
        report = said[said.index("error: ") :]
        assert "the processes disagree" in report and "Traceback" not in said
        assert "seed: process 0 has 0, process 1 has 1" in report
        assert "optimizer.lr: process 0 has 0.001, process 1 has 0.5" in report
        assert "batch_size: process 0 has 8, process 1 has 4" in report
    assert list((small.root / "quarrel").iterdir()) == []


def test_an_error_of_one_is_told_by_both(small):
    second = ("--config.backbone=nowhere",)
    jobs = start_two(small, *small.arguments("--workdir=quarrel"), second=second)
    for job in jobs:
        said = job.end(2, seconds=60)
        assert re.search(r"error: process 1: backbone 'nowhere' is not a directory", said), said


def test_one_that_fails_alone_takes_the_other_along(small):
    """The first cannot write its checkpoints; the second is not left waiting for it."""
    arguments = small.arguments("--workdir=alone", method="projection")
    (small.root / "alone" / "metrics.jsonl").mkdir(parents=True)
    first, second = start_two(small, *arguments)
    assert "metrics.jsonl" in first.end(seconds=90)
    second.end(seconds=90)
    assert first.wait(0) != 0 and second.wait(0) != 0
