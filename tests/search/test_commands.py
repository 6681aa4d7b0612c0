"""`index` and `search` as commands: wrong flags are named; from a folder to an answer."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import subprocess
import sys

import media
import pytest
import search_case
import test_architecture

import uniadapter_jax
from uniadapter_jax import export, index, search
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.inference.clip_options import clip_options
from uniadapter_jax.inference.search import index as finished
from uniadapter_jax.inference.search import parts
from uniadapter_jax.inference.search.index import Hit
from uniadapter_jax.runs.workdir import holding
from uniadapter_jax.weights.adapter_directory import read_adapter


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """A folder to index in the working directory, and commands with a model that is no work."""
    search_case.make_folder(tmp_path / "clips", pictures=3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    loaded = []

    def load(*arguments, **options):
        loaded.append(arguments)
        return search_case.Colours()

    for module in (index, finished):
        monkeypatch.setattr(module, "load_model", load)
    for module in (index, search):
        monkeypatch.setattr(module.launch, "use_compile_cache", lambda: None)
    return loaded


def said(capsys, command, *arguments, status=0):
    assert command.main(list(arguments)) == status
    captured = capsys.readouterr()
    return captured.err if status else captured.out


IN, OUT, BACKBONE = "--input=clips", "--output=i", "--backbone=b"


def test_from_a_folder_to_an_answer(clips, capsys, tmp_path):
    told = said(capsys, index, IN, OUT, BACKBONE, "--adapter=a")
    assert told.startswith("i: 5 clips of 4 files") is False and "i: 5 clips of 5 files" in told
    assert "1 file cannot be used (i/report.json):\n  broken.mp4: unreadable: " in told
    assert "5 clips of 5 files" in told
    said(capsys, index, IN, OUT)  # the model of the index
    assert clips == [("b", "a"), (f"{tmp_path}/b", "a")]
    hits = json.loads(said(capsys, search, "i", "rgbxyz", "-k", "2", "--json"))["hits"]
    assert len(hits) == 2 and set(hits[0]) >= {"id", "path", "start", "end", "score"}
    lines = said(capsys, search, "i", "rgbxyz", "--ask=how many?").splitlines()
    assert len(lines) == 5 and any("0:00-0:04" in line and "long.mp4" in line for line in lines)
    assert "[how many? 3]" in "".join(lines)
    assert "p02.png" in said(capsys, search, "i", "--image=clips/p02.png")
    assert said(capsys, search, "i", "rgbxyz", "--rerank=5", "-k", "1").count("\n") == 1


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (index, ["--input=empty", OUT, BACKBONE], "--input=empty holds no video and no picture"),
        (index, ["--input=full", OUT, BACKBONE], "--input=full holds no video and no picture"),
        (index, ["--input=gone", OUT, BACKBONE], "--input=gone is not a directory"),
        (index, [IN, "--output=full", BACKBONE], "--output=full exists and is no index"),
        (index, [IN, OUT], "--backbone=DIR is missing: a new index needs a model. To try"),
        (index, [IN, OUT, "--backbone=tiny_clp"], "--backbone=tiny_clp: there is no such dir"),
        (index, [IN, OUT, "--backbone=tiny_clp"], "did you mean tiny_clip?"),
        (index, [IN, "--output=/proc/x", BACKBONE], "/proc/x cannot be made there; choose another"),
        (index, [IN, OUT, BACKBONE, "--stride=2"], "pass --window=SECONDS"),
        (index, [IN, OUT, BACKBONE, "--window=0"], "--window=0 --stride=0"),
        (index, [IN, OUT, BACKBONE, "--window=2", "--stride=3"], "--stride=3"),
        (index, [IN, OUT, BACKBONE, "--window=nan"], "--window=nan"),
        (index, [IN, OUT, BACKBONE, "--threads=0"], "--threads=0"),
        (search, ["full", "text"], "full holds no index.json, so it is no index; make one"),
        (search, ["full", "a", "red car"], """in quotes: search full 'a red car'"""),
        (search, ["full", "-dash"], "stand behind --: search full -- -dash"),
        (search, ["full", " "], "the query is empty"),
        (search, ["full", "text", "-k", "0"], "-k 0: at least 1"),
    ],
)
def test_wrong_flags_are_named(clips, capsys, tmp_path, command, arguments, words):
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert words in said(capsys, command, *arguments, status=2)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.name != "lock") == before


def test_one_writes_at_a_time(clips, capsys, tmp_path):
    with holding(tmp_path / "i", "another"):
        assert "is in use by another" in said(capsys, index, IN, OUT, BACKBONE, status=2)
    said(capsys, index, IN, OUT, BACKBONE)


def test_a_changed_description_is_refused(clips, capsys, tmp_path):
    said(capsys, index, IN, OUT, BACKBONE)
    file = tmp_path / "i" / "index.json"
    sound = file.read_text()
    for old, new, words in (
        ('"width": 6', '"width": 7', "damaged"),
        ("index/1", "index/2", "index.json"),
        ("{", "[", "is not JSON"),
    ):
        file.write_text(sound.replace(old, new, 1))
        assert words in said(capsys, search, "i", "r", status=2)
    file.write_text(sound)


def test_names_are_safe_to_show():
    hostile = Hit("i", "/a/\x1b[2J\n.png", "x", None, None, True, float("-inf"), 0.1, "gone\x07")
    (line,) = search.table([hostile]).splitlines()
    assert line.isprintable() and "\\x1b" in line
    name = "/äöü 😀 \u0646\u202e\udcff\u2067.png"
    (line,) = search.table([dataclasses.replace(hostile, path=name)]).splitlines()
    assert line.endswith("/äöü 😀 \u0646\\u202e\\udcff\\u2067.png  (gone\\x07)")
    assert search.as_json([hostile])[0]["score"] is None


def test_names_that_are_no_utf8_are_indexed(clips, capsys, tmp_path):
    media.write_picture(tmp_path / "clips" / "odd\udcff.png")
    said(capsys, index, IN, OUT, BACKBONE)
    assert "odd" in said(capsys, search, "i", "rgbxyz", "-k", "9")
    assert json.loads(said(capsys, search, "i", "rgbxyz", "-k", "9", "--json"))


def test_what_there_is_is_listed_without_importing_it():
    code = "import sys, uniadapter_jax as u; print(dir(u), 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'Index'" in done.stdout and "'load_model'" in done.stdout
    assert done.stdout.endswith("False\n") and uniadapter_jax.Index is finished.Index


def test_what_only_training_needs_is_not_imported():
    """Grain, TFDS and Orbax take a third of the start of a command."""
    late, todo, seen = (
        ("grain", "tensorflow_datasets", "orbax"),
        ["index", "search", "serve"],
        set(),
    )
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        tree = ast.parse(test_architecture.FILES[name].read_text())
        for node in tree.body:  # what is imported within functions waits until it is needed
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.startswith(late)], name
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        todo += test_architecture.imports_of(ast.unparse(ast.Module(top, [])))
    assert "inference.search.index" in seen and "data.records" in seen


def test_the_package_shows_what_there_is():
    names = {name for name in dir(uniadapter_jax) if not name.startswith("__")}
    assert names == {"AdaptedBLIP", "AdaptedModel", "Index", "load_model", "config", "testing"}
    assert all(getattr(uniadapter_jax, name).__doc__ for name in names)


def test_an_unfinished_index_says_so(clips, capsys, tmp_path, monkeypatch):
    def die(*_):
        raise OSError("killed")

    with monkeypatch.context() as dying:
        dying.setattr(parts.Store, "write", die)
        with pytest.raises(OSError):
            index.main([IN, OUT, BACKBONE])
    assert search.main(["i", "rgb"]) == 0
    assert "i is unfinished" in capsys.readouterr().err
    for _ in range(2):
        said(capsys, index, IN, OUT)
        assert search.main(["i", "rgb"]) == 0 and not capsys.readouterr().err
        (tmp_path / "i" / "reading.json").write_text("[]")  # killed when all files were stored
    (tmp_path / "clips").rename(tmp_path / "moved")
    assert search.main(["i", "rgb"]) == 0
    assert "clips, the folder that was indexed, is not there" in capsys.readouterr().err


def test_a_long_text_is_said_to_be_cut(clips, capsys):
    said(capsys, index, IN, OUT, BACKBONE)
    assert search.main(["i", "a b c d e f"]) == 0
    note = "the query has 6 tokens, of which the model reads the first 5 only\n"
    assert capsys.readouterr().err == note


def test_models_that_have_moved_are_named(tmp_path, monkeypatch, clips, capsys):
    (tmp_path / "a").mkdir()
    said(capsys, index, IN, OUT, BACKBONE, "--adapter=a")
    (tmp_path / "a").rename(tmp_path / "there")
    problem = said(capsys, search, "i", "r", status=2)
    assert "the adapter of i was in" in problem and "pass --adapter=DIR" in problem
    for flag in ("--adapter=gone", "--backbone=gone"):
        assert f"{flag}: there is no such dir" in said(capsys, search, "i", "r", flag, status=2)
    (tmp_path / "there" / "identity.json").touch()
    monkeypatch.setattr(search, "read_run", lambda place: place)
    monkeypatch.setattr(export, "exported", lambda run: f"{tmp_path}/b")
    said(capsys, search, "i", "r", "--adapter=there")
    assert clips[-1] == (f"{tmp_path}/b", f"{tmp_path}/b")


def test_the_usual_way_is_said_in_a_sentence():
    told = index._assumed(clip_options({}, "a", 64))
    assert told == (
        "Frames are taken as usual, as no adapter says how: 12 of each film (evenly), 224 pixels."
    )


@pytest.mark.parametrize("name", ["index", "search", "serve"])
def test_the_version_is_told(name, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"uniadapter_jax.{name}").main(["--version"])
    assert not end.value.code and capsys.readouterr().out == f"{uniadapter_jax.__version__}\n"


def test_what_is_no_adapter_is_told_apart(tmp_path):
    with pytest.raises(UserError, match="gone: there is no such directory"):
        read_adapter(tmp_path / "gone")
    (run := tmp_path / "a run").mkdir()
    with pytest.raises(UserError, match="is no adapter of this package"):
        read_adapter(run)
    (run / "identity.json").touch()
    with pytest.raises(UserError, match=r"export --workdir='.*a run' --to=DIR"):
        read_adapter(run)
