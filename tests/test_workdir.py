"""One command at a time in a directory: who is refused, who takes over, and what stays."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import small_run
from test_resume import assert_same_run, begun

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.export import export
from uniadapter_jax.runs import workdir
from uniadapter_jax.runs.workdir import Holder, check_free, holding

CODE = """
import os, sys, time
from uniadapter_jax.runs import workdir
workdir.BEAT = {beat}
with workdir.holding({place!r}, "a test"):
    {work}
"""


def started(place, work, beat=5.0):
    """A process that holds the directory and does some work there."""
    code = CODE.format(place=str(place), work=work, beat=beat)
    environment = os.environ | {"PYTHONPATH": str(small_run.ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def assert_held_by(pid, place):
    for attempt in (lambda: check_free(place), lambda: holding(place, "another").__enter__()):
        with pytest.raises(UserError) as caught:
            attempt()
        said = str(caught.value)
        assert f"{place} is in use by a test, process {pid} on {socket.gethostname()}" in said
        assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]", said)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(workdir, "BEAT", 0.05)
    monkeypatch.setattr(workdir, "STALE", 0.5)


def left_behind(place, age=0.0, **changes):
    """The lock file of another host."""
    holder = Holder.this_process("a test")._replace(host="elsewhere", boot="another")
    path = place / workdir.LOCK
    path.write_text(json.dumps(holder._replace(**changes)._asdict()))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_second_process_is_refused_until_the_first_ends(tmp_path):
    process = started(tmp_path, "print('ready', flush=True); sys.stdin.read()")
    before = small_run.tree_hash(tmp_path)
    assert_held_by(process.pid, tmp_path)
    assert small_run.tree_hash(tmp_path) == before
    process.communicate()
    with holding(tmp_path, "another"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_same_process_cannot_enter_twice(tmp_path):
    with holding(tmp_path, "a test"):
        assert_held_by(os.getpid(), tmp_path)
        with holding(tmp_path / "other", "another"):
            pass


def test_a_killed_process_holds_nothing(tmp_path):
    """Nor do its children, which a fork gave the open file."""
    work = "os.fork() or time.sleep(30); print('ready', flush=True); time.sleep(30)"
    process = started(tmp_path, work)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / workdir.LOCK).exists()
    began = time.monotonic()
    check_free(tmp_path)
    with holding(tmp_path, "another"):
        assert time.monotonic() - began < workdir.STALE / 2


def test_another_host_that_beats_is_respected(tmp_path, quick, capsys):
    path = left_behind(tmp_path)
    ended = threading.Event()

    def beat():
        while not ended.wait(0.02):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        for attempt in (lambda: check_free(tmp_path), lambda: holding(tmp_path, "x").__enter__()):
            with pytest.raises(UserError, match=r"in use by a test, process \d+ on elsewhere"):
                attempt()
    finally:
        ended.set()
        thread.join()
    assert "looking for" in capsys.readouterr().err


@pytest.mark.parametrize("age", [0.0, 3600.0], ids=["silent", "gone for long"])
def test_another_host_that_is_silent_is_taken_over(tmp_path, quick, age, capsys):
    """Whatever its clock says, and at once where the file is old by the file system's clock."""
    left_behind(tmp_path, age)
    began = time.monotonic()
    with holding(tmp_path, "another"):
        held = json.loads((tmp_path / workdir.LOCK).read_text())
        assert held["command"] == "another" and held["pid"] == os.getpid()
    waited = time.monotonic() - began
    assert (waited >= workdir.STALE) == (age == 0.0) == ("looking for" in capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_without_locks_of_the_file_system_the_lease_decides(tmp_path, quick, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with holding(tmp_path, "a test"):
        time.sleep(0.2)
        assert_held_by(os.getpid(), tmp_path)
    left_behind(tmp_path)
    with holding(tmp_path, "another"):
        pass


def test_who_lost_the_lock_ends(tmp_path):
    process = started(tmp_path, "print('ready', flush=True); time.sleep(30)", beat=0.05)
    (tmp_path / workdir.LOCK).rename(tmp_path / "gone")
    (tmp_path / workdir.LOCK).write_text("{}")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "is another process' now" in said and said.count("\n") == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "\0" * 50, "[" * 10_000])
def test_a_lock_file_that_says_nothing_is_taken(tmp_path, text):
    (tmp_path / workdir.LOCK).write_text(text)
    with holding(tmp_path, "another"):
        pass


@pytest.mark.parametrize("kind", ["pipe", "link", "link to nothing"])
def test_what_is_no_lock_file_is_refused(tmp_path, kind):
    lock, other = tmp_path / "lock", tmp_path / "other"
    if kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(other if kind == "link" else tmp_path / "nowhere" / "other")
    other.write_text("precious")
    with pytest.raises(UserError, match="lock is no regular file"), holding(tmp_path, "a test"):
        pass
    assert other.read_text() == "precious"


def test_a_second_run_is_refused_and_the_first_goes_on(small, whole):
    """Also by export; killed, the first leaves a lock that the next start takes over."""
    first = begun(small, "locked", steps=2)
    first.signal(signal.SIGSTOP)
    place = small.root / "locked"
    before = small_run.tree_hash(place)
    for flags in (("--workdir=locked", small_run.OFTEN), ("--workdir=locked", "--config.seed=5")):
        said = small.refused(*small.arguments(*flags))
        assert f"locked is in use by a run, process {first.pid} on {socket.gethostname()}" in said
    with pytest.raises(UserError, match=f"in use by a run, process {first.pid}"):
        export(place, small.root / "never-exported")
    assert small_run.tree_hash(place) == before
    first.signal(signal.SIGKILL)
    first.end(-signal.SIGKILL)
    assert (place / workdir.LOCK).exists()
    small.run("--workdir=locked", small_run.OFTEN)
    assert_same_run(place, whole)
    assert not (place / workdir.LOCK).exists()


def test_the_file_is_documented():
    text = pathlib.Path(small_run.ROOT, "docs", "results.md").read_text()
    assert "| `lock` |" in text
