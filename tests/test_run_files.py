"""Files of a workdir that others read: damage is told, with the file and the field."""

from __future__ import annotations

import json
import os
import shutil
import time

import numpy as np
import pytest
import small_run
from damage import damage

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.compare import main as compare
from uniadapter_jax.export import main as export
from uniadapter_jax.runs.files import check_same, read_result, read_run, write_result

FILES = ("config.json", "identity.json", "result.json")
CONFIG = {
    **{"name": "n", "backbone": "b", "tokenizer": "", "seed": 3},
    **{"method": {"name": "lora", "rank": 4}, "train": {"batch_size": 8}},
}
IDENTITY = {"backbone": "1f", "seed": 3, "method.name": "lora", "method.rank": 4, "batch_size": 8}
RESULT = {"method": "lora", "step": 4, "metrics": {"t2v": {"R@1": 50.0}}, "ranks": {"t2v": [1, 2]}}


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "identity.json").write_text(json.dumps(IDENTITY))
    write_result(tmp_path / "result.json", RESULT)
    return tmp_path


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_written_is_read(workdir):
    run = read_run(workdir)
    assert run.config["method"]["rank"] == 4 and run.identity["batch_size"] == 8
    assert run.result == RESULT and dict(run.result["metrics"]["t2v"]) == {"R@1": 50.0}
    (workdir / "result.json").unlink()
    assert read_run(workdir).result is None


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("config.json", {"method": {"name": "lora", "rank": 5}}, "config.method.rank is 5, identi"),
        ("config.json", {"train": {"batch_size": 9}}, "config.train.batch_size is 9"),
        ("config.json", {"backbone": None}, "config.backbone should be a string, is None"),
        ("identity.json", {"seed": 4}, "config.seed is 3, identity.json says 4"),
        ("result.json", {"step": 5}, "result.json: is damaged: .*SHA-256"),
        ("result.json", {"metrics": {"t2v": {"R@1": 51.0}}}, "result.json: is damaged"),
    ],
)
def test_a_changed_value_is_told(workdir, name, changes, message):
    rewrite(workdir / name, **changes)
    with pytest.raises(UserError, match=message):
        read_run(workdir)


def test_a_field_that_is_not_there_is_named(workdir):
    run = read_run(workdir)
    with pytest.raises(UserError, match=r"config\.json: has no field config\.method\.alpha"):
        run.config["method"]["alpha"]
    with pytest.raises(UserError, match=r"identity\.json: has no field tokenizer"):
        run.identity["tokenizer"]


def test_identity_and_checkpoint_must_agree(workdir):
    with pytest.raises(UserError, match=r"identity\.json: seed is 3, in the checkpoint it is 4"):
        check_same(workdir, IDENTITY, {**IDENTITY, "seed": 4})
    check_same(workdir, IDENTITY, {**IDENTITY, "since": 5})


def test_results_without_a_digest(tmp_path):
    """As earlier versions wrote them."""
    path = tmp_path / "result.json"
    path.write_text(json.dumps(RESULT))
    assert read_result(path) == RESULT
    for changes, message in (
        ({"step": None}, "step should be int, is None"),
        ({"metrics": {"t2v": {"R@1": "50"}}}, r"metrics\.t2v should hold numbers"),
        ({"ranks": {"t2v": 4}}, r"ranks\.t2v should be a list"),
        ({"metrics": []}, r"metrics should be dict"),
    ):
        path.write_text(json.dumps({**RESULT, **changes}))
        with pytest.raises(UserError, match=message):
            read_result(path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", "NaN", '{"seed": 1e999}', "[" * 10_000, '{"a":' * 10_000),
        *('{"name": "\ud800"}', "\0", '{"a": "' + "x" * 65 * 2**20 + '"}', None),
    ],
    ids=range(12),
)
def test_hostile_files(workdir, name, content):
    path = workdir / name
    path.unlink()
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
    began = time.monotonic()
    with pytest.raises(UserError, match=name):
        read_run(workdir)
    assert time.monotonic() - began < 2


def attack(sound, base, place, name, seed, capsys):
    """Damages a file of a finished run; exports it, compares it with itself, resumes it."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(sound, place / "run")
    told = f"{name}: {damage(place / 'run' / name, np.random.default_rng(seed))}"
    status = export([f"--workdir={place / 'run'}", f"--to={place / 'out'}"])
    said = capsys.readouterr().err
    assert status in (0, 2) and "Traceback" not in said, (told, said)
    if status == 0:
        gone = name == "result.json" and "deleted" in told  # then the card says that none is there
        same = small_run.tree_hash(place / "out") == base
        assert same or gone, told
    else:
        assert said.startswith("error: ") and not (place / "out").exists(), told
    if name == "result.json":
        status = compare([str(place / "run"), "--json"])
        out, err = capsys.readouterr()
        assert status == 2 or json.loads(out)["tables"], told
        assert "Traceback" not in err, told
    return status


def exported(whole, place, capsys):
    assert export([f"--workdir={whole}", f"--to={place}"]) == 0
    capsys.readouterr()
    return small_run.tree_hash(place)


@pytest.mark.parametrize("name", [*FILES, "checkpoints"])
def test_random_damage_as_export_reads_it(whole, tmp_path, capsys, name):
    base = exported(whole, tmp_path / "base", capsys)
    for seed in range(2):
        attack(whole, base, tmp_path / "copy", name, seed, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FILES, "checkpoints"])
def test_random_damage_as_export_reads_it_60(whole, tmp_path, capsys, name):
    base = exported(whole, tmp_path / "base", capsys)
    for seed in range(100, 160):
        attack(whole, base, tmp_path / "copy", name, seed, capsys)


def resumed(small, whole, place, name, seed):
    """The run of a damaged workdir: refused, or its result is the undisturbed run's."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place)
    told = f"{name}: {damage(place / name, np.random.default_rng(seed))}"
    job = small.fork(*small.arguments(f"--workdir={place}", small_run.OFTEN))
    said = job.end()
    assert "Traceback" not in said, (told, said)
    if job.wait(0) != 0:
        assert job.wait(0) == 2 and said.count("error: ") == 1, (told, said)
        return "refused"
    state, expected = small_run.checkpoint(place), small_run.checkpoint(whole)
    assert all(state[key].tobytes() == expected[key].tobytes() for key in expected), told
    result, right = small_run.result(place), small_run.result(whole)
    same = all(result[key] == right[key] for key in ("ranks", "metrics", "final_loss", "step"))
    assert same or "warning: " in said, told
    assert not list((place / "checkpoints").glob("*.d*")), told
    return "warned" if "warning: " in said else "silent and right"


RESUMED = ("checkpoints", "metrics.jsonl", "identity.json", "config.json", "result.json")


def test_random_damage_as_a_resume_reads_it(small, whole, tmp_path):
    for seed, name in enumerate(RESUMED[:3]):
        resumed(small, whole, tmp_path / "copy", name, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_random_damage_as_a_resume_reads_it_60(small, whole, tmp_path, name):
    told = []
    for seed in range(200, 200 + int(os.environ.get("DAMAGES", "60"))):
        told.append(resumed(small, whole, tmp_path / "copy", name, seed))
    print(name, {kind: told.count(kind) for kind in told}, flush=True)
