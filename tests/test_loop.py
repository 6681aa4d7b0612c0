"""The order of the loop's calls, and what it says about the time of overlapping steps."""

from __future__ import annotations

import gc
import itertools
import runpy

import jax
import numpy as np
import pytest

from uniadapter_jax.adapters.partition import flat_names
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.runs import loop
from uniadapter_jax.runs.assembly import build
from uniadapter_jax.runs.step_times import StepTimes

STEPS = 6


class Opaque:
    """Stands for arrays on the devices: whatever reads them on the host fails."""

    def __init__(self, step):
        self.step = step

    def block_until_ready(self):
        return self


@pytest.fixture
def recorded(small, monkeypatch):
    """A function of the flags of a config: the calls of the loop in their order."""

    def run(workdir, bad=None, **train):
        config = runpy.run_path(str(small.config))["get_config"]("method=projection")
        config.train.update({"steps": STEPS, "log_every": 1000, "checkpoint_every": 1000, **train})
        experiment = build(config)
        calls = []

        def step_fn(trainable, opt_state, task_state, frozen, batch, step):
            assert batch == f"batch {step + 1}", "each step gets the batch that is its own"
            calls.append(("step", int(step) + 1))
            state = Opaque(int(step) + 1)
            return state, state, {}, {"loss": Opaque(int(step) + 1)}

        def fetch(tree):
            step = tree["loss"].step
            calls.append(("fetch", step))
            flags = np.zeros(len(small_loop.names), bool)
            flags[1:2] = step == bad
            return {"loss": np.float32(step), "lr": np.float32(1), "nonfinite": flags} | {
                experiment.kind.shown: np.float32(0)
            }

        def put_batch(batch, mesh, size):
            number = next(numbers)
            calls.append(("put", number))
            return f"batch {number}"

        numbers = itertools.count(1)
        small_loop = loop._Loop(experiment, workdir, evaluate=None)
        monkeypatch.setattr(loop, "make_step", lambda *args: step_fn)
        monkeypatch.setattr(meshes, "fetch", fetch)
        monkeypatch.setattr(meshes, "put_batch", put_batch)
        monkeypatch.setattr(small_loop, "_save", lambda step: calls.append(("save", step)))
        try:
            small_loop._steps()
        except loop.Diverged as error:
            calls.append(("stopped", str(error)))
        small_loop.writer.close()
        small_loop.checkpoints.close()
        return calls

    return run


def test_the_next_batch_and_the_next_step_go_before_the_numbers(recorded, tmp_path):
    """put(n + 1) and step n + 1 before fetch(n), one fetch a step; arrays are never read."""
    calls = recorded(tmp_path)
    expected = [("put", 1), ("step", 1), ("put", 2)]
    for step in range(2, STEPS):
        expected += [("step", step), ("fetch", step - 1), ("put", step + 1)]
    last = [("step", STEPS), ("fetch", STEPS - 1), ("fetch", STEPS), ("save", STEPS)]
    assert calls == expected + last


def test_a_step_is_known_to_be_finite_before_it_is_saved(recorded, tmp_path):
    calls = recorded(tmp_path, checkpoint_every=2)
    for step in (2, 4, 6):
        assert calls.index(("fetch", step)) + 1 == calls.index(("save", step))
    assert calls.index(("put", 3)) < calls.index(("fetch", 2)) < calls.index(("step", 3))


@pytest.mark.parametrize("bad, saved", [(3, [2]), (4, [2])])
def test_a_step_that_is_not_finite_stops_a_step_later_and_is_named(recorded, tmp_path, bad, saved):
    *calls, (kind, said) = recorded(tmp_path, bad=bad, checkpoint_every=2)
    assert kind == "stopped" and f"step {bad}: non-finite values" in said
    assert [step for name, step in calls if name == "save"] == saved
    assert max(step for name, step in calls if name == "step") <= bad + 1


class Steps:
    """Results that are on the devices at a known time of a clock that stands still otherwise."""

    now = 0.0

    def __call__(self):
        return self.now


def test_times_of_steps_are_those_of_the_devices(monkeypatch):
    """Times add up; a wait behind a step that still runs does not count, and saving is no step."""
    clock = Steps()
    times = StepTimes(clock)

    def ask(begin, end):
        clock.now = begin
        with times.asking():
            clock.now = end

    def done_at(now):
        """Results that are there at this time."""

        class Results:
            def block_until_ready(self):
                clock.now = now
                return self

        return Results()

    def step(results):
        times.begin(results)
        return times._under_way[-1][0].result()

    ask(0.0, 2.0)  # nothing runs: all of it is a wait
    step(done_at(7.0))
    assert times.end() == (7.0, 2.0)
    ask(3.0, 6.0)  # behind step 1, which ends at 7
    step(done_at(12.0))
    assert times.end() == (5.0, 0.0)
    ask(8.0, 15.0)  # step 2 ended at 12
    clock.now = 15.0
    with times.pause():
        clock.now = 25.0  # a checkpoint
    step(done_at(30.0))
    assert times.end() == (8.0, 3.0)
    times.close()


def test_the_loaded_backbone_is_let_go(small):
    """Where weights are placed in another dtype, no float32 copy stays."""

    def embeddings():
        gc.collect()
        return sum(x.dtype == "float32" and x.shape == shape for x in jax.live_arrays())

    config = runpy.run_path(str(small.config))["get_config"]("method=projection")
    config.compute.dtype = "bfloat16"
    shape = flat_names(build(config).partition.frozen)["text.token_embedding"].shape
    before = embeddings()
    experiment = build(config)
    assert embeddings() == before
    assert experiment.partition.counts()["total"] > 0
