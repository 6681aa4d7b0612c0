"""Killed at any moment and run again, a run ends as if nothing had happened."""

from __future__ import annotations

import os
import re
import runpy
import signal
import time

import jax
import numpy as np
import pytest
import small_run
from small_run import OFTEN

from uniadapter_jax.parallel.preemption import Preempted
from uniadapter_jax.runs.assembly import build
from uniadapter_jax.runs.loop import fit

# Kill at this step, and some seconds later: while steps are computed and checkpoints written.
STEP, SECONDS = 15, np.random.default_rng(0).uniform(0.0, 0.08, 2)[1]


def assert_same_run(workdir, whole):
    """Every loss, every trainable, every moment of the optimizer, bit for bit."""
    assert small_run.losses(workdir) == small_run.losses(whole)
    assert small_run.checkpoint_steps(workdir)[-1] == small_run.STEPS
    state, expected = small_run.checkpoint(workdir), small_run.checkpoint(whole)
    assert state.keys() == expected.keys()
    changed = [name for name in expected if state[name].tobytes() != expected[name].tobytes()]
    assert changed == []
    assert small_run.result(workdir)["ranks"] == small_run.result(whole)["ranks"]


def begun(small, name, *flags, steps=1):
    """A run that has done so many steps."""
    metrics = small.root / name / "metrics.jsonl"
    job = small.fork(*small.arguments(f"--workdir={name}", OFTEN, *flags))
    job.await_(lambda: metrics.exists() and metrics.read_text().count("\n") >= steps)
    return job


def test_killed_while_a_checkpoint_is_written_and_at_a_random_moment(small, whole):
    """The half-written one is not taken for one, and is removed; -9 leaves no time to write."""
    checkpoints = small.root / "killed" / "checkpoints"

    def half_written():
        return checkpoints.is_dir() and any("tmp" in p.name for p in checkpoints.iterdir())

    job = begun(small, "killed")
    job.await_(lambda: half_written() and small_run.checkpoint_steps(small.root / "killed"))
    job.signal(signal.SIGKILL)
    job.end(-signal.SIGKILL)
    job = begun(small, "killed", steps=STEP)
    time.sleep(SECONDS)
    job.signal(signal.SIGKILL)
    assert "resumed from step" in job.end(-signal.SIGKILL)
    said = small.run("--workdir=killed", OFTEN)
    assert int(re.search(r"resumed from step (\d+)", said)[1]) >= 12
    assert not half_written()
    assert_same_run(small.root / "killed", whole)


def test_sigterm_saves_and_ends_well(small, whole):
    job = begun(small, "stopped", "--config.train.checkpoint_every=1000")
    job.signal(signal.SIGTERM)
    said = job.end(0)
    (step,) = small_run.checkpoint_steps(small.root / "stopped")
    assert f"stopped at step {step} of {small_run.STEPS}; saved" in said and "Traceback" not in said
    assert not (small.root / "stopped" / "result.json").exists()
    assert f"resumed from step {step}" in small.run("--workdir=stopped", OFTEN)
    assert_same_run(small.root / "stopped", whole)


def test_sigterm_before_the_first_step_ends_well(small):
    job = small.fork(*small.arguments("--workdir=early"))
    job.await_(lambda: (small.root / "early" / "identity.json").exists())
    job.signal(signal.SIGTERM)
    said = job.end(0)
    assert "Run the same command to go on" in said and "Traceback" not in said


def validating(small):
    """A config of two epochs of three steps, each of which is validated."""
    config = runpy.run_path(str(small.config))["get_config"]("method=projection")
    config.data.val, config.train.steps = 6, 6
    return config


@pytest.fixture(scope="module")
def validated(small):
    """(workdir, what `fit` found) of such a run, which nothing disturbed."""
    experiment, workdir = build(validating(small)), small.root / "validated"
    return workdir, fit(experiment, workdir, experiment.kind.evaluator(experiment, None))


@pytest.mark.parametrize("stopped", [0, 1], ids=["amid training", "after the last step"])
def test_sigterm_leaves_a_validation_which_is_done_later(small, validated, stopped):
    """The validation after one of the epochs is asked to stop."""
    config = validating(small)
    calls = iter(range(10))

    def run(workdir, stopped=None):
        experiment = build(config)
        evaluate = experiment.kind.evaluator(experiment, None)

        def maybe_asked_to_stop(trainable, records):
            if next(calls) == stopped:
                os.kill(os.getpid(), signal.SIGTERM)
            return evaluate(trainable, records)

        return fit(experiment, workdir, maybe_asked_to_stop)

    torn, (undisturbed, expected) = small.root / f"validation-{stopped}", validated
    step = 3 * (stopped + 1)
    with pytest.raises(Preempted, match=f"stopped at step {step} of 6; saved"):
        run(torn, stopped)
    assert small_run.checkpoint_steps(torn)[-1] == step
    found = run(torn)
    assert found.step == expected.step
    for mine, its in zip(*map(jax.tree.leaves, (found.trainable, expected.trainable)), strict=True):
        np.testing.assert_array_equal(mine, its)
    assert small_run.lines(torn, "val") == small_run.lines(undisturbed, "val")
    assert small_run.checkpoint_steps(torn) == small_run.checkpoint_steps(undisturbed)
    run(torn)
    assert next(calls) == 3, "what has a value is not measured again"


def test_an_evaluation_that_fails_costs_no_step(small, validated):
    """The state of the epoch is saved before; what it measures is measured by the next start."""
    config = validating(small)

    def run(workdir, fails=False):
        experiment = build(config)
        evaluate = experiment.kind.evaluator(experiment, None)

        def maybe_failing(trainable, records):
            if fails:
                raise RuntimeError("out of memory")
            return evaluate(trainable, records)

        return fit(experiment, workdir, maybe_failing)

    torn, (undisturbed, expected) = small.root / "evaluation-fails", validated
    with pytest.raises(RuntimeError, match="out of memory"):
        run(torn, fails=True)
    assert small_run.checkpoint_steps(torn) == [3]
    found = run(torn)
    assert found.step == expected.step and found.steps_run == 3
    assert small_run.losses(torn) == small_run.losses(undisturbed)
    assert small_run.lines(torn, "val") == small_run.lines(undisturbed, "val")
    assert small_run.checkpoint_steps(torn) == small_run.checkpoint_steps(undisturbed)
    for mine, its in zip(*map(jax.tree.leaves, (found.trainable, expected.trainable)), strict=True):
        np.testing.assert_array_equal(mine, its)
