"""Files read within bounds, and written whole or not at all."""

import os
import pickle

import pytest

from uniadapter_jax.common.files import (
    FileError,
    read_bytes,
    read_json,
    read_lines,
    sealed,
    unsealed,
    write_json,
    write_whole,
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"", "is not JSON"),
        (b"[1]", "should hold a JSON object, holds a JSON array"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": 1e999}', "beyond float64"),
        (b'[{"a": {"b": 1, "c": 2, "b": 1}}]', "the key 'b' stands there twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"a": ' + b"[" * 100_000, "nested too deep"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b'{"a": "' + b"x" * 200_000 + b'"}', "200,009 bytes, more than 100,500"),
    ],
)
def test_json_that_is_none_of_ours_is_named(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(FileError, match=f"config.json: .*{message}") as caught:
        read_json(path, limit=100_500)
    assert caught.value.path == str(path)


def test_pipes_directories_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(FileError, match=r"no regular file|directory"):
            read_bytes(path, 100)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none", 100)
    with pytest.raises(FileError, match="cannot be read"):
        read_bytes("a\0b", 100)


def test_what_is_written_is_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1.5, None]})
    assert read_json(tmp_path / "a.json") == {"é": [1.5, None]}
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert read_json(tmp_path / "a.json") == {"é": [1.5, None]}


def test_a_torn_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", b"old")

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    monkeypatch.undo()
    write_whole(tmp_path / "a", "newer")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"newer"


def test_an_error_reaches_another_process():
    again = pickle.loads(pickle.dumps(FileError("a/b", "is damaged")))
    assert (again.path, again.reason, str(again)) == ("a/b", "is damaged", "a/b: is damaged")


def test_a_seal_is_of_all_else(tmp_path):
    path = tmp_path / "f.json"
    write_json(path, sealed({"a": [1, 2.5], "b": {"é": None}}))
    assert unsealed(read_json(path), path) == ({"a": [1, 2.5], "b": {"é": None}}, True)
    assert unsealed({"a": 1}, path) == ({"a": 1}, False)
    with pytest.raises(FileError, match=r"f\.json: is damaged: its content"):
        unsealed({**read_json(path), "a": [1, 2.4]}, path)


def test_lines_are_bounded(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(b"one\n\xff\nlast")
    assert list(read_lines(path, 5)) == [(1, b"one\n"), (2, b"\xff\n"), (3, b"last")]
    path.write_bytes(b"one\n" + b"x" * 100)
    with pytest.raises(FileError, match="line 2 has more than 50 bytes"):
        list(read_lines(path, 50))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FileError, match="no regular file"):
        list(read_lines(path, 50))
