"""Training that ends early, and training that begins from another run's adapter."""

from __future__ import annotations

import json

import numpy as np
import pytest
import small_run

from uniadapter_jax.export import export
from uniadapter_jax.runs.metrics_file import read_lines

PATIENT = ("--config.data.val=6", "--config.train.steps=60", "--config.optimizer.lr=1e-9")


def validations(workdir):
    lines = [values for _, _, values in read_lines(workdir / "metrics.jsonl")]
    return [(line["step"], line["selection"]) for line in lines if line["kind"] == "val"]


@pytest.fixture(scope="module")
def ended(small):
    """A run whose best step comes early, since a large rate spoils it, with a patience of three."""
    flags = (*PATIENT[:2], "--config.optimizer.lr=0.3", "--config.train.patience=3")
    said = small.run("--workdir=ended", *flags)
    return small.root / "ended", said, flags


def test_training_ends_after_validations_without_a_value_as_good(ended):
    workdir, said, _ = ended
    values = validations(workdir)
    best = max(range(len(values)), key=lambda i: (values[i][1], i))
    result = small_run.result(workdir)
    assert len(values) == best + 4 and values[-1][0] < 60
    assert f"stopped at step {values[-1][0]} of 60: none of 3 validations was as good" in said
    assert result["step"] == values[best][0]
    assert (result["last_step"], result["total_steps"]) == (values[-1][0], 60)


def test_what_has_ended_stays_ended(small, ended):
    workdir, _, flags = ended
    before, numbers = validations(workdir), small_run.result(workdir)["metrics"]
    small.run("--workdir=ended", *flags)
    assert validations(workdir) == before and small_run.result(workdir)["metrics"] == numbers


def test_validations_every_few_steps(small):
    """And after the last one; what is best is tested, wherever an epoch ends."""
    small.run(
        "--workdir=seldom", *PATIENT, "--config.train.steps=10", "--config.train.validate_every=4"
    )
    values = validations(small.root / "seldom")
    assert [step for step, _ in values] == [4, 8, 10]
    best = max(values, key=lambda pair: (pair[1], pair[0]))
    assert small_run.result(small.root / "seldom")["step"] == best[0]


def test_patience_without_validation_is_refused(small):
    said = small.refused(*small.arguments("--workdir=never", "--config.train.patience=2"))
    assert "config.train.patience=2 waits for a better value on validation data" in said


def test_training_begins_from_an_adapter(small, whole):
    adapter = small.root / "to_begin_from"
    export(whole, adapter)
    flags = (f"--config.init_from={adapter}", "--config.optimizer.lr=1e-9")
    small.run("--workdir=further", *flags)
    first, last = small_run.losses(small.root / "further"), small_run.losses(whole)
    assert np.mean(first) < np.mean(last)  # it begins where the other one ended
    ranks = [small_run.result(place)["ranks"] for place in (small.root / "further", whole)]
    assert ranks[0] == ranks[1]
    identity = json.loads((small.root / "further" / "identity.json").read_text())
    assert len(identity["initial"]) == 64 and "init_from" not in identity
    said = small.refused(*small.arguments("--workdir=further", flags[1]))
    assert "initial" in said
    other = small.arguments("--workdir=never", flags[0], method="lora")
    assert "is an adapter of cross_modal_adapter, and config.method.name is lora" in small.refused(
        *other
    )
    shape = (*flags, "--config.method.bottleneck=5")
    assert "shape of" in small.refused(*small.arguments("--workdir=never", *shape))
    assert "is no directory" in small.refused(
        *small.arguments("--workdir=never", "--config.init_from=nowhere")
    )
