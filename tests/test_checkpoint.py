"""Checkpoints prove what they hold: damage is found, named, and costs nothing that is sound."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from damage import damage, harm

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.runs import stored_checkpoint as stored
from uniadapter_jax.runs.checkpoint import Checkpoints, abstract_like, last_step, restore_trainable
from uniadapter_jax.runs.stored_checkpoint import Damaged

IDENTITY = {"seed": 0, "method.name": "lora"}
STEPS = (2, 4, 6)


def state_of(step):
    """Arrays as large as those that zstd compresses, small ones, a scalar, two dtypes."""
    rng = np.random.default_rng(step)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    trainable = {"a": {"kernel": draw(64, 40), "bias": draw(7)}, "b": draw(3, 2, 5)}
    moments = jax.tree.map(lambda x: x.astype(jnp.bfloat16), trainable)
    count = jnp.asarray(step, jnp.int32)
    return {"trainable": trainable, "opt_state": [{"count": count, "mu": moments}]}


def bytes_of(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def open_(directory, keep=3, identity=IDENTITY):
    return Checkpoints(directory, keep=keep, identity=identity)


def save_all(directory, keep=3):
    checkpoints = open_(directory, keep)
    for step in STEPS:
        checkpoints.save(step, state_of(step), selection={2: 60.5, 4: 70.25, 6: 50.0}[step])
    checkpoints.close()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sound") / "checkpoints"
    save_all(directory)
    return directory


@pytest.fixture
def copy(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "checkpoints")


def resume(directory):
    """(step, its arrays right) of the newest that is taken."""
    checkpoints = open_(directory)
    found = checkpoints.restore_newest(abstract_like(state_of(0)))
    checkpoints.close()
    assert found is not None
    return found[0], bytes_of(found[1]) == bytes_of(state_of(found[0]))


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_what_is_saved_comes_back(copy):
    assert resume(copy) == (6, True)
    trainable, identity = restore_trainable(copy, 4, state_of(0)["trainable"])
    assert bytes_of(trainable) == bytes_of(state_of(4)["trainable"])
    assert identity == IDENTITY and open_(copy).best() == 4


def test_a_damaged_leaf_is_named_and_the_one_before_it_is_taken(copy, capsys):
    """Whole in all files' own checks: the arrays of another step under this step's meta."""
    shutil.rmtree(copy / "6" / "state")
    shutil.copytree(copy / "4" / "state", copy / "6" / "state")
    assert resume(copy) == (4, True)
    said = capsys.readouterr().err
    assert "warning: the checkpoint of step 6 is damaged" in said
    assert "opt_state/0/count does not have the bytes that were saved" in said
    assert names(copy) == ["2", "4", "6.damaged"] and last_step(copy) == 4


def test_a_damaged_one_stays_until_a_newer_one_is_sound(copy):
    (copy / "6" / "state" / "manifest.ocdbt").unlink()
    checkpoints = open_(copy, keep=1)
    step, state = checkpoints.restore_newest(abstract_like(state_of(0)))
    assert step == 4 and names(copy) == ["2", "4", "6.damaged"]
    checkpoints.save(5, state, wait=True)
    assert names(copy) == ["4", "5", "6.damaged"], "4 is the best"
    checkpoints.save(6, state, wait=True)
    assert names(copy) == ["4", "6"]
    checkpoints.close()


def test_none_is_deleted_before_a_newer_one_was_read_back(tmp_path, monkeypatch, capsys):
    """A disk that does not keep what it is given."""
    directory = tmp_path / "checkpoints"
    checkpoints = open_(directory, keep=1)
    checkpoints.save(1, state_of(1), wait=True)
    assert names(directory) == ["1"]
    real = stored.read_state

    def spoilt(place, meta, like):
        raise Damaged(f"{place}: trainable/b does not have the bytes that were saved")

    monkeypatch.setattr(stored, "read_state", spoilt)
    checkpoints.save(2, state_of(2), wait=True)
    assert names(directory) == ["1", "2.damaged"]
    assert "step 2 was not written well" in capsys.readouterr().err
    monkeypatch.setattr(stored, "read_state", real)
    checkpoints.save(3, state_of(3), wait=True)
    assert names(directory) == ["3"]
    checkpoints.close()


def test_all_damaged_is_an_error_that_changes_nothing(copy):
    for step in STEPS:
        (copy / str(step) / "meta" / "metadata").unlink()
    with pytest.raises(UserError, match=r"every checkpoint is damaged: .*6/meta/metadata is miss"):
        resume(copy)
    assert names(copy) == ["2", "4", "6"]
    with pytest.raises(UserError, match=r"step 4 is damaged: .* steps \[2, 6\]: name one with"):
        restore_trainable(copy, 4, state_of(0)["trainable"])


def test_half_deleted_and_half_written_ones(copy):
    """What a process leaves that is killed while it removes, or writes."""
    shutil.copytree(copy / "2", copy / "1")
    shutil.rmtree(copy / "1" / "state" / "d")
    (copy / "8.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (copy / "3.deleted" / "meta").mkdir(parents=True)
    (copy / "notes.txt").write_text("a person's")
    assert resume(copy) == (6, True)
    assert names(copy) == ["1", "2", "4", "6", "notes.txt"]
    checkpoints = open_(copy, keep=2)
    checkpoints.save(8, state_of(8), wait=True)
    checkpoints.close()
    assert names(copy) == ["4", "6", "8", "notes.txt"]


def test_the_selection_is_proven(copy, capsys):
    path = copy / "6" / "metrics" / "metrics"
    path.write_text(path.read_text().replace("50.0", "80.0"))
    checkpoints = open_(copy)
    assert checkpoints.best() == 4 and not checkpoints.has_selection(6)
    assert "metrics does not have the SHA-256" in capsys.readouterr().err
    shutil.rmtree(copy / "6" / "metrics")
    checkpoints.set_selection(6, 90.0)
    assert checkpoints.best() == open_(copy).best() == 6
    checkpoints.forget(6)
    assert checkpoints.best() == 4


def test_another_run_is_refused_before_its_arrays_are_read(copy):
    with pytest.raises(UserError, match=r"belongs to another run:\n  seed: there 0, in this run 1"):
        checkpoints = open_(copy, identity={**IDENTITY, "seed": 1})
        checkpoints.restore_newest(abstract_like(state_of(0)))
    assert names(copy) == ["2", "4", "6"]


def without_digests(directory):
    """As checkpoints were before they carried digests."""
    for step in STEPS:
        (directory / str(step) / "meta" / "metadata").write_text(
            json.dumps({"step": step, "identity": IDENTITY})
        )
        (directory / str(step) / "metrics" / "metrics").write_text(json.dumps({"selection": 1.5}))


def test_checkpoints_without_digests_are_taken_with_a_word(copy, capsys):
    without_digests(copy)
    assert resume(copy) == (6, True)
    assert "step 6 was saved without digests" in capsys.readouterr().err
    assert open_(copy).best() == 6


def test_a_field_that_is_null_is_as_good_as_none(copy):
    """Such as one that an earlier version did not know."""
    checkpoints = open_(copy, identity={**IDENTITY, "task.answers": None})
    found = checkpoints.restore_newest(abstract_like(state_of(0)))
    assert found is not None and bytes_of(found[1]) == bytes_of(state_of(6))


def test_written_by_orbax_alone(tmp_path):
    """The layout is orbax's: what its own manager wrote is read."""
    options = ocp.CheckpointManagerOptions(best_fn=lambda m: m.get("selection", -1.0))
    with ocp.CheckpointManager(tmp_path / "old", options=options) as manager:
        meta = ocp.args.JsonSave({"step": 7, "identity": IDENTITY})
        state = ocp.args.StandardSave(state_of(7))
        manager.save(7, args=ocp.args.Composite(state=state, meta=meta), metrics={"selection": 2.0})
    assert resume(tmp_path / "old") == (7, True)
    assert open_(tmp_path / "old").best() == 7


def attack(sound, place, seed):
    """One random damage: what resume and export make of it."""
    rng = np.random.default_rng(seed)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(sound, place)
    step = str(rng.choice([6, 6, 6, 4, 2]))
    told = f"{step}/{damage(place / step, rng)}"
    try:
        trainable, _ = restore_trainable(place, int(step), state_of(0)["trainable"])
        assert bytes_of(trainable) == bytes_of(state_of(int(step))["trainable"]), told
    except UserError:
        pass
    try:
        checkpoints = open_(place)
        assert checkpoints.best() in (4, 2 if step == "4" else 4), told
        if checkpoints.best() != 4:
            assert not checkpoints.has_selection(4), told
        found, state = checkpoints.restore_newest(abstract_like(state_of(0)))
        assert bytes_of(state) == bytes_of(state_of(found)), told
        assert found == 6 or step == "6", told
        checkpoints.close()
    except UserError as error:
        raise AssertionError(f"two were sound: {told}") from error
    return told, found


def test_random_damage(sound, tmp_path, capsys):
    for seed in range(12):
        told, found = attack(sound, tmp_path / "copy", seed)
        assert found == 6 or "warning: the checkpoint of step 6" in capsys.readouterr().err, told


@pytest.mark.slow
def test_random_damage_300(sound, tmp_path, capsys):
    for seed in range(100, 400):
        told, found = attack(sound, tmp_path / "copy", seed)
        assert found == 6 or "warning: the checkpoint of step 6" in capsys.readouterr().err, told


def test_harm_changes_a_file(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("flip", "cut", "delete"):
        (tmp_path / "f").write_bytes(b"abcdef")
        harm(tmp_path / "f", kind, rng)
        assert not (tmp_path / "f").exists() or (tmp_path / "f").read_bytes() != b"abcdef"
