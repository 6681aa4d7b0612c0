"""A directory appears when it is complete; what a killed process has left goes, no other's."""

import fcntl
import json
import os
import pathlib

import numpy as np
import pytest
import safetensors.numpy
import small_run
import tiny
from damage import harm

from uniadapter_jax.common.digests import check_digests, write_digests
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError
from uniadapter_jax.common.new_directory import new_directory
from uniadapter_jax.weights.directory import huggingface_tensors


def names(place):
    return sorted(path.name for path in place.iterdir())


def leave(target):
    """What a process leaves that is killed while it fills."""
    (target.parent / f".{target.name}.partial" / "half").mkdir(parents=True)
    (target.parent / f".{target.name}.lock").write_text("process 1 on elsewhere")


def test_it_appears_complete_and_leftovers_go(tmp_path):
    leave(tmp_path / "a")
    leave(tmp_path / "b")
    (tmp_path / "a").mkdir()
    with new_directory(tmp_path / "a") as made:
        (made / "file").write_text("x")
        assert names(tmp_path / "a") == [] and names(made) == ["file"]
    assert names(tmp_path / "a") == ["file"]
    assert names(tmp_path) == [".b.lock", ".b.partial", "a"], "b's may be alive"


def test_a_failure_leaves_nothing(tmp_path):
    leave(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "a") as made:
        (made / "file").write_text("x")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_leftovers_go_also_where_the_target_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").write_text("precious")
    leave(tmp_path / "a")
    with pytest.raises(UserError, match="exists and is not empty"), new_directory(tmp_path / "a"):
        pass
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["mine"]


def test_a_living_one_is_let_alone(tmp_path):
    with new_directory(tmp_path / "a") as made:
        (made / "file").write_text("x")
        with pytest.raises(UserError, match=f"made by process {os.getpid()} on .* since"):
            with new_directory(tmp_path / "a"):
                pass
        assert names(made) == ["file"]
        with new_directory(tmp_path / "b"):
            pass
    assert names(tmp_path) == ["a", "b"]


def test_without_locks_nothing_of_others_is_removed(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / ".a.partial").mkdir()
    with new_directory(tmp_path / "a") as made:
        (made / "file").write_text("x")
    assert names(tmp_path) == [".a.partial", "a"]


def test_links_are_followed_and_files_are_spared(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with new_directory(tmp_path / "link") as made:
        (made / "file").write_text("x")
    assert names(tmp_path / "real") == ["file"] and (tmp_path / "link").is_symlink()
    (tmp_path / "f").write_text("precious")
    for target in ("f", "f/below"):
        with pytest.raises(UserError, match="f"), new_directory(tmp_path / target):
            pass
    assert (tmp_path / "f").read_text() == "precious"


@pytest.mark.parametrize("kind", ["flip", "bytes", "cut", "delete"])
def test_digests_tell_what_has_changed(tmp_path, kind):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(range(256)))
    check_digests(tmp_path)
    write_digests(tmp_path, ["a", "b"])
    check_digests(tmp_path)
    (tmp_path / "unlisted").write_text("x")
    check_digests(tmp_path)
    harm(tmp_path / "b", kind, np.random.default_rng(1))
    with pytest.raises(FileError, match=r"/b: (has changed|is missing)"):
        check_digests(tmp_path)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "", ".", "a\nb", "a/b"])
def test_a_list_of_digests_names_plain_files(tmp_path, name):
    write_digests(tmp_path, [])
    (tmp_path / "digests.json").write_text(f'{{"{name}": ""}}'.replace("\n", "\\n"))
    with pytest.raises(FileError, match=r"digests\.json: is damaged"):
        check_digests(tmp_path)


class Killing:
    """A command that is killed, and run again."""

    def __init__(self, module, arguments, target):
        self.module, self.arguments, self.target = module, [*arguments, str(target)], target

    def run(self, at=None):
        """(status, calls), None if it was killed."""
        report = self.target.parent / "report"
        given = (self.module, self.arguments, "new_directory", at, str(report))
        child = small_run.child("killed", "run", given)
        child.join(120)
        assert child.exitcode == (0 if at is None else -9)
        if at is not None:
            return None
        status, calls = map(int, report.read_text().split())
        report.unlink()
        return status, calls

    def campaign(self, count):
        """Kills at `count` moments; each time the next run gives what the first gave."""
        status, calls = self.run()
        assert status == 0
        expected = small_run.tree_hash(self.target)
        for at in np.random.default_rng(0).integers(1, calls, count).tolist():
            small_run.remove(self.target)
            self.run(at)
            whole = self.target.exists()
            assert not whole or small_run.tree_hash(self.target) == expected, f"half, at {at}"
            status, _ = self.run()
            assert status == (2 if whole else 0)
            assert small_run.tree_hash(self.target) == expected, at
            assert names(self.target.parent) == [self.target.name], at


KILLS = [1, pytest.param(30, marks=pytest.mark.slow)]


@pytest.mark.parametrize("kills", KILLS)
def test_killed_conversions(tmp_path, kills):
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(tiny.hf_config()))
    tensors = {n: np.ascontiguousarray(v) for n, v in huggingface_tensors(tiny.clip())}
    tensors["logit_scale"] = tensors["logit_scale"].reshape(())
    safetensors.numpy.save_file(tensors, source / "model.safetensors")
    (tmp_path / "out").mkdir()
    made = tmp_path / "out" / "made"
    Killing("uniadapter_jax.convert", [str(source)], made).campaign(kills)


@pytest.mark.parametrize("kills", KILLS)
def test_killed_exports(whole, tmp_path, kills):
    made = tmp_path / "out" / "made"
    pathlib.Path(made.parent).mkdir()
    Killing("uniadapter_jax.export", [f"--workdir={whole}", "--to"], made).campaign(kills)


def test_an_error_names_what_was_asked_for(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=r"/a: Permission denied$"), new_directory(tmp_path / "a"):
        pass
