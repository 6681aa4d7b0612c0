"""The way in: commands and configs by name, wherever one starts them."""

from __future__ import annotations

import json
import pathlib
import runpy
import shutil
import subprocess
import sys

import pytest
import small_run
from absl import flags
from PIL import Image
from test_architecture import COMMANDS as MODULES

import uniadapter_jax
from uniadapter_jax import __main__ as door
from uniadapter_jax.adapters.registry import METHODS
from uniadapter_jax.benchmark.grid import base_grid, row, setting, units_of
from uniadapter_jax.common import packaged
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.config.choices import choices
from uniadapter_jax.data.prepared import splits_of
from uniadapter_jax.data.records import open_records
from uniadapter_jax.weights.directory import load_backbone

ROOT = pathlib.Path(door.__file__).parent.parent


def test_every_command_is_listed_with_what_it_does(capsys):
    assert set(door.COMMANDS) == MODULES
    for arguments in ([], ["--help"]):
        assert door.main(arguments) == 0
        said = capsys.readouterr().out
        assert all(f"\n  {name} " in said for name in MODULES)
        assert "Adapts a frozen backbone and evaluates it." in said


def test_an_unknown_command_is_told_with_the_one_that_was_meant(capsys):
    assert door.main(["comapre", "runs"]) == 2
    assert "no command comapre; did you mean compare?" in capsys.readouterr().err


def test_a_command_gets_its_arguments(monkeypatch):
    started = []
    monkeypatch.setattr(
        door.runpy, "run_module", lambda name, **_: started.append((name, sys.argv))
    )
    monkeypatch.setattr(sys, "argv", ["uniadapter"])
    assert door.main(["look", "data/own", "--id=a b"]) == 0
    assert started == [("uniadapter_jax.look", ["uniadapter look", "data/own", "--id=a b"])]


@pytest.mark.parametrize("name", ["demo", "demo.py", "configs/demo.py"])
def test_a_config_is_found_by_name_from_anywhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert pathlib.Path(packaged.packaged(name)) == ROOT / "configs/demo.py"
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("")
    assert packaged.packaged(name) == name  # a file that is there wins


def test_a_command_line_with_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = str(ROOT / "configs")
    argv = ["main", "--config=demo:method=lora", "--config.seed=1", "--config", "own", "nowhere"]
    wanted = ["main", f"--config={place}/demo.py:method=lora", "--config.seed=1", "--config"]
    assert packaged.with_packaged(argv) == [*wanted, f"{place}/own.py", "nowhere"]
    assert packaged.with_packaged(["--config=nowhere"]) == ["--config=nowhere"]


def test_what_a_config_names_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_backbone("random:configs/backbones/tiny_clip.json").fingerprint
    grid = base_grid("here")
    grid.settings.clips = setting("configs/demo.py")
    grid.rows.zero_shot = row("zero_shot")
    (unit,) = units_of(grid)
    assert unit.config((), 0).method.name == "zero_shot"


def test_a_config_that_is_not_there_is_told_with_those_that_are_close(small):
    assert "msrvt: no such file; did you mean msrvtt or" in small.refused("--config=msrvt")


def test_help_lists_what_there_is_to_choose_from():
    said = choices()
    assert all(name in said for name in (*METHODS, "retrieval", "vqa", "msrvtt_qa"))
    assert "--config.optimizer.lr=3e-5" in said


def test_help_of_main_has_the_flags_of_several_processes():
    from uniadapter_jax import main

    keys = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(main)}
    assert {"config", "workdir", "coordinator", "num-processes", "process-id"} <= keys


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODULES))
def test_help_of_every_command(name, tmp_path):
    command = [sys.executable, "-m", "uniadapter_jax", name, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert door._what(name) in done.stdout


def test_one_command_from_a_folder_to_records(small, tmp_path):
    folder, records = tmp_path / "clips", tmp_path / "records"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (40, 30), (80 * i, 0, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"number {i}\n")
    arguments = (f"--from-folder={folder}", "--config=own", f"--output={records}", "--workers=0")
    stays = "was written or edited by hand, and stays as it is"
    for said_first, more in (("wrote", ()), (stays, ()), ("wrote", ("--overwrite",))):
        said = small.fork(*arguments, *more, module="uniadapter_jax.prepare").end(0)
        assert f"manifest.jsonl {said_first}" in said or f"{said_first} {folder}" in said
        assert f"{records}" in said
        lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
        assert sum(len(open_records(str(records), split)) for split in splits_of(str(records))) == 3
        lines[0]["captions"] = ["mended by hand"]
        (folder / "manifest.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    both = small.fork(f"--input={folder}", *arguments, module="uniadapter_jax.prepare").end(2)
    assert "--from-folder and --input both say" in both


def test_the_version_is_told(capsys):
    assert door.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{uniadapter_jax.__version__}\n"


def test_a_model_of_the_package_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_backbone("tiny_clip").fingerprint
    (tmp_path / "tiny_clip").mkdir()
    with pytest.raises(UserError, match="tiny_clip"):  # a directory that is there wins
        load_backbone("tiny_clip")


def test_an_index_takes_a_run(small, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")  # it gets an adapter, and other tests compare
    (tmp_path / "clips").mkdir()
    Image.new("RGB", (40, 30), (200, 0, 0)).save(tmp_path / "clips" / "red.png")
    arguments = (f"--input={tmp_path / 'clips'}", f"--output={tmp_path / 'index'}")
    for _ in range(2):
        job = small.fork(*arguments, f"--adapter={run}", module="uniadapter_jax.index")
        assert "1 clip of 1 file" in job.end(0)
    assert (run / f"adapter-{small_run.STEPS}" / "adapter_config.json").exists()
    small.fork(*arguments, module="uniadapter_jax.index").end(0)


def test_every_block_of_the_readme_says_whether_it_is_walked():
    blocks = runpy.run_path(str(ROOT / "scripts/walk_readme.py"))["blocks"]
    walked = [block.walk for block in blocks((ROOT / "README.md").read_text())]
    assert walked.count("run") >= 3
    with pytest.raises(UserError, match="no <!-- walk"):
        blocks("```bash\nmake demo\n```\n")
