"""Which fields of a config make another run, which another evaluation, and which neither."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest
import small_run
from ml_collections import ConfigDict
from test_resume import begun

from uniadapter_jax.adapters.registry import METHODS
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.config import base_config, validate
from uniadapter_jax.config.rules import MULTIPLIERS, choices_of, leaves, ranges_of
from uniadapter_jax.runs import identity
from uniadapter_jax.runs.claims import claim
from uniadapter_jax.runs.identity import FREE, check_identity, differences
from uniadapter_jax.runs.results import OTHERS
from uniadapter_jax.tasks.registry import TASKS

FACTS = {
    **{name: name for name in ("backbone", "tokenizer", "data.records", "data.test", "answers")},
    **{"data.validation": "data.validation", "method.version": 1, "steps": 10},
}
NEVER_SELECT = {"eval.also": "dsl", "eval.split": "val"}  # and read by the evaluation only
EVERY = [(method, task) for method in METHODS for task in TASKS]


def another(path, value, ranges, choices):
    """Another value that the field may have."""
    if path == MULTIPLIERS:
        return {"kernel": 2.0}
    if path in NEVER_SELECT:
        return NEVER_SELECT[path]
    if path in choices:
        return next(choice for choice in choices[path] if choice not in (value, "auto", "val"))
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, "mlp.fc1")
    if isinstance(value, str):
        return f"{value}x"
    candidates = (value / 2, value + 0.25) if isinstance(value, float) else (value + 1, 4)
    return next(new for new in candidates if new in ranges[path] and new != value)


def flipped(method, task, path, selection="last"):
    config = base_config(method, task)
    config.selection, config.data.val = selection, 0 if path == "data.val_split" else 5
    before = dict(leaves(config))[path]
    if path == "selection_metric":
        new = "accuracy/overall" if task == "vqa" else "t2v/R@1"
    else:
        new = another(path, before, ranges_of(method, task), choices_of(method, task))
    loose = ConfigDict(config.to_dict(), type_safe=False)
    loose.update_from_flattened_dict({path: new})
    return validate(config), validate(loose)


def both(config, facts=FACTS):
    return identity.training(config, facts), identity.evaluation(config, facts)


def fields_of(method, task):
    """The fields of a config that no earlier pair of `EVERY` has had: each is flipped once."""
    first = {"method": task == EVERY[0][1], "task": method == EVERY[0][0]}
    for path, _ in leaves(base_config(method, task)):
        if first.get(path.partition(".")[0], (method, task) == EVERY[0]):
            yield path


@pytest.mark.parametrize(("method", "task"), EVERY)
def test_every_field_counts_or_has_a_reason_not_to(method, task):
    for path in fields_of(method, task):
        # Another name has other fields; there is one metric only for answers.
        if path in ("method.name", "task.name") or (task, path) == ("vqa", "selection_metric"):
            continue
        one, other = map(both, flipped(method, task, path))
        if path in FREE:
            assert one == other and len(FREE[path].split()) > 3, path
            continue
        asked = path.startswith("task.") and path[5:] in TASKS[task].evaluation
        measured = asked or path in NEVER_SELECT
        assert (one[0] != other[0]) == (not measured), path
        assert (one[1] != other[1]) == measured, path
        # A checkpoint that was chosen by a measure is another by another.
        if path == "eval.split":  # a selection on test reads it
            continue
        one, other = (both(config)[0] for config in flipped(method, task, path, "test"))
        selects = path not in NEVER_SELECT and (
            path != "selection" or one["selection"] != other["selection"]
        )
        assert (one != other) == selects


def test_names_of_methods_and_tasks_count():
    seen = [both(validate(base_config(method, task)))[0] for method, task in EVERY]
    assert len({json.dumps(one) for one in seen}) == len(EVERY)


@pytest.mark.parametrize("name", sorted(FACTS))
def test_what_lies_at_the_paths_counts(name):
    changes = {**FACTS, name: 99}
    for selection in ("last", "val", "test"):
        config, _ = flipped("lora", "vqa", "seed", selection)
        one, other = both(config), both(config, changes)
        measured = name in ("data.test", "answers")
        trains = not measured and name != "data.validation"
        chooses = (selection, name) in {
            *(("val", "data.validation"), ("val", "answers")),
            *(("test", "data.test"), ("test", "answers")),
        }
        assert (one[0] != other[0]) == (trains or chooses), selection
        assert (one[1] != other[1]) == measured


def test_reasons_are_of_fields():
    known = {path for method, task in EVERY for path, _ in leaves(base_config(method, task))}
    assert set(FREE) <= known
    for task, kind in TASKS.items():
        assert {*kind.evaluation, *kind.protocol, *kind.kept} <= set(kind.options), task


def first_version(mine, config):
    """As runs before version 2 wrote it."""
    new = ("version", "compute.dropout", "compute.drop_path", MULTIPLIERS, "data.validation")
    kept = {name: value for name, value in mine.items() if name not in (*new, "answers")}
    task = {f"task.{name}": value for name, value in config.task.items()}
    return {**kept, **task, "data.test": "data.test"}


def test_an_option_that_came_after_a_run_had_its_default():
    config, _ = flipped("lora", "retrieval", "seed")
    mine = both(config)[0]
    saved = {name: value for name, value in mine.items() if name != "method.from_layer"}
    assert differences(saved, mine) == {}
    other = {**mine, "method.from_layer": 2}
    assert differences(saved, other) == {"method.from_layer": (0, 2)}
    assert differences(saved, other, {"method": {"from_layer": 2}}) == {}


@pytest.mark.parametrize("selection", ["last", "val", "test"])
def test_an_identity_of_the_first_version_is_the_same_run(selection):
    config, _ = flipped("uniadapter", "vqa", "seed", selection)
    mine = both(config)[0]
    saved = first_version(mine, config)
    assert differences(saved, mine) == {}
    assert differences(saved, mine, json.loads(config.to_json_best_effort())) == {}
    there = {"compute": {"dropout": 0.3}}
    assert differences(saved, mine, there) == {"compute.dropout": (0.3, 0.1)}
    config.compute.dropout = 0.3
    assert differences(saved, both(config)[0], there) == {}
    assert differences(saved, both(config)[0]) == {"compute.dropout": (0.1, 0.3)}
    assert differences({**saved, "seed": 7}, both(config)[0], there) == {"seed": (7, 0)}


def test_records_that_changed_are_told_in_words(tmp_path):
    one = both(flipped("lora", "retrieval", "seed", "val")[0])[0]
    with pytest.raises(UserError) as caught:
        check_identity(tmp_path, one, {**one, "data.records": "f" * 64})
    said = str(caught.value)
    assert "\n  the records changed (data.records: there " in said and f" {'f' * 12})\n" in said
    assert said.endswith("Train into another --workdir, or bring back the files it was trained on")


def test_a_refused_run_leaves_no_empty_directory(tmp_path):
    (tmp_path / "there").mkdir()
    for place in ("new/run", "there/run", "there"):
        with pytest.raises(UserError, match="refused"), contextlib.ExitStack() as stack:
            claim(tmp_path / place, stack)
            raise UserError("refused")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    with contextlib.ExitStack() as stack:
        claim(tmp_path / "new/run", stack)
        (tmp_path / "new/run/config.json").touch()
    assert (tmp_path / "new/run/config.json").exists()


def test_what_chose_the_checkpoint_is_named(tmp_path):
    one, other = (both(config)[0] for config in flipped("lora", "retrieval", "task.ties", "val"))
    with pytest.raises(UserError) as caught:
        check_identity(tmp_path, one, other)
    said = str(caught.value)
    assert "\n  task.ties: there 'optimistic', in this run 'expected'" in said
    assert "config.selection='val' chose the checkpoint by it" in said


STEPS = ("--config.train.steps=3",)


@pytest.fixture(scope="module")
def finished(small):
    """The workdir of a run that ended."""
    small.run(*STEPS, "--workdir=measured", method="projection")
    return small.root / "measured"


def test_a_finished_run_is_measured_again_and_both_results_stay(small, finished):
    first = small_run.result(finished)
    assert (first["split"], first["evaluations"]) == ("test", {"test": 1})
    weights = small_run.tree_hash(finished / "checkpoints")
    flags = (*STEPS, "--workdir=measured", "--config.task.ties=pessimistic")
    said = small.run(*flags, method="projection")
    (kept,) = (finished / OTHERS).iterdir()
    assert f"the result of another evaluation is kept in {kept.relative_to(small.root)}" in said
    second = small_run.result(finished)
    assert small_run.result(kept) == first
    assert (first["protocol"]["ties"], second["protocol"]["ties"]) == ("optimistic", "pessimistic")
    assert first["identity"] == second["identity"]
    assert second["evaluations"] == {"test": 2}
    assert second["evaluation"]["task.ties"] == "pessimistic"
    assert small_run.tree_hash(finished / "checkpoints") == weights
    small.run(*STEPS, "--workdir=measured", method="projection")
    (other,) = (finished / OTHERS).iterdir()
    assert small_run.result(finished)["metrics"] == first["metrics"]
    assert small_run.result(other) == second and other != kept
    said = small.refused(
        *small.arguments(*flags, "--config.compute.dropout=0.2", method="projection")
    )
    assert "compute.dropout: there 0.1, in this run 0.2" in said


def test_a_run_of_the_first_version_goes_on(small, finished):
    """Its identity, in the file and in the checkpoints' own words, lacks fields and has others."""
    workdir = small.root / "first-version"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / OTHERS, ignore_errors=True)
    config = ConfigDict(json.loads((workdir / "config.json").read_text()))
    path = workdir / "identity.json"
    path.write_text(json.dumps(first_version(json.loads(path.read_text()), config)))
    flags = (*STEPS, "--workdir=first-version")
    said = small.refused(
        *small.arguments(*flags, "--config.compute.dropout=0.2", method="projection")
    )
    assert "compute.dropout: there 0.1, in this run 0.2" in said
    assert "resumed from step 3" in small.run(*flags, method="projection")
    assert json.loads(path.read_text())["version"] == identity.VERSION


def test_a_run_without_a_step_does_not_hold_its_workdir(small):
    """Its first step was not finite, say; one step, and it does."""
    flags = ("--config.optimizer.lr=1e39", "--workdir=unheld")
    assert "none is saved" in small.refused(*small.arguments(*flags, method="projection"))
    small.run(*STEPS, "--workdir=unheld")
    result = small_run.result(small.root / "unheld")
    assert result["identity"]["optimizer.lr"] == 1e-3 and result["method"] != "projection"
    job = begun(small, "held", "--config.train.checkpoint_every=1000")
    job.signal(9)
    job.end(-9)
    said = small.refused(*small.arguments("--workdir=held", "--config.seed=9"))
    assert "seed: there 0, in this run 9" in said


def test_the_answers_are_what_counts_not_their_path(small):
    """Other content at the same path is another evaluation; its files are kept, too."""
    path, workdir = small.root / "answers.json", small.root / "asked"
    flags = ("--workdir=asked", f"--config.task.answers={path}")
    arguments = small.arguments(*flags, method="zero_shot", task="vqa")
    path.write_text('["yes", "red"]')
    small.fork(*arguments).end(0)
    answers = workdir / "answers-test.jsonl"
    first, said = small_run.result(workdir), answers.read_bytes()
    path.write_text('["yes", "blue"]')
    assert "kept in" in small.fork(*arguments).end(0)
    (kept,) = (workdir / OTHERS).iterdir()
    assert small_run.result(kept)["evaluation"] == first["evaluation"]
    assert (kept / "answers-test.jsonl").read_bytes() == said != answers.read_bytes()
