"""Killed at any system call, again and again: in the end all is as if nothing had happened.

By day a few kills before changes that Python makes; under `slow`, where strace is installed, at
system calls of any thread, those of the libraries that write arrays among them.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys

import media
import numpy as np
import pytest
import small_run
from small_run import OFTEN

from uniadapter_jax.data.preparation.shards import ITEMS_PER_SHARD

# System calls by what they do, and how many of one kind a prepare or a few steps make.
CALLS = {
    "write,pwrite64,writev": 40,
    "fsync,fdatasync": 10,
    "rename,renameat,renameat2": 6,
    "unlink,unlinkat,rmdir": 12,
    "mkdir,mkdirat": 12,
}
TIMES = {"seconds", "wait_seconds", "since_start"}
CONFIG = """
from uniadapter_jax.config import base_config

def get_config():
    config = base_config()
    config.data.prepare.source = "manifest"
    return config
"""
STRACE = shutil.which("strace")


def strace(rng, *, children=True):
    """Its arguments: SIGKILL at the n-th call of a kind by any one thread, or by the first."""
    calls = str(rng.choice(list(CALLS)))
    count = int(rng.integers(1, CALLS[calls]))
    return [
        *(STRACE, *(["-f"] if children else []), "-qq", "-o", os.devnull, "-e", f"trace={calls}"),
        *("-e", f"inject={calls}:signal=SIGKILL:when={count}"),
    ]


def names(directory):
    """What lies in a workdir, but for names that orbax and TensorBoard choose."""
    paths = (path.relative_to(directory) for path in directory.rglob("*"))
    chosen = ("/d/", "tensorboard/")
    return sorted(str(path) for path in paths if not any(word in f"{path}" for word in chosen))


def assert_same_run(workdir, whole):
    """Files, every line but for times, every array, and the result."""
    assert names(workdir) == names(whole)
    for kind in ("train", "val", "test"):
        mine, its = (
            [{k: v for k, v in line.items() if k not in {*TIMES, "crc"}} for line in lines]
            for lines in (small_run.lines(workdir, kind), small_run.lines(whole, kind))
        )
        assert mine == its
    for step in small_run.checkpoint_steps(whole):
        state, expected = small_run.checkpoint(workdir, step), small_run.checkpoint(whole, step)
        assert state.keys() == expected.keys()
        assert not [n for n in expected if state[n].tobytes() != expected[n].tobytes()]
    result, expected = small_run.result(workdir), small_run.result(whole)
    free = {"seconds", "train_seconds", "data_wait_share", "sha256", "evaluations"}
    assert [k for k in expected if k not in free and result.get(k) != expected[k]] == []
    # A run that had its result when it was killed is measured again, and says so.
    assert result["evaluations"].keys() == expected["evaluations"].keys()
    assert all(result["evaluations"][k] >= n for k, n in expected["evaluations"].items())
    assert not (workdir / "metrics.damaged.jsonl").exists()


def train_until_killed(small, workdir, rng, *, traced):
    """Whether it was killed; else it ended well."""
    arguments = small.arguments(f"--workdir={workdir}", OFTEN)
    if not traced:
        job = small.fork(*arguments, die=(str(workdir), int(rng.integers(1, 150))))
    else:
        job = small.fork(*arguments)
        tracer = subprocess.Popen([*strace(rng), "-p", str(job.pid)], stderr=subprocess.DEVNULL)
    said = job.end()
    if traced:
        tracer.wait(30)
    assert "Traceback" not in said and "warning: " not in said, said
    status = job.wait(0)
    assert status in (0, -signal.SIGKILL), said
    return status != 0


def train_campaign(small, whole, place, rng, kills, *, traced):
    """Runs that are killed about ten times each, until so many kills are done."""
    done = 0
    for number in itertools.count():
        workdir = place / str(number)
        limit = int(rng.integers(6, 15))
        while done < kills and limit and train_until_killed(small, workdir, rng, traced=traced):
            done, limit = done + 1, limit - 1
        small.run(f"--workdir={workdir}", OFTEN)
        assert_same_run(workdir, whole)
        print(f"{done} kills, {number + 1} runs", flush=True)
        shutil.rmtree(workdir)
        if done >= kills:
            return


def test_training_killed_before_changes(small, whole, tmp_path):
    rng = np.random.default_rng(1)
    train_campaign(small, whole, tmp_path, rng, 2, traced=False)


@pytest.mark.slow
def test_training_killed_200_times(small, whole, tmp_path):
    rng = np.random.default_rng(int(os.environ.get("KILLS_SEED", "2")))
    kills = int(os.environ.get("KILLS", "200"))
    train_campaign(small, whole, tmp_path, rng, kills, traced=bool(STRACE))


def prepare_until_killed(small, tmp_path, arguments, rng, *, traced):
    """Whether it was killed; else it ended well."""
    if traced:
        # A worker that died twice on one file would rightly give that up: only the parent dies.
        alone = "--workers=0" in arguments
        python = [sys.executable, "-m", "uniadapter_jax.prepare"]
        command = [*strace(rng, children=alone), *python, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        status, said = done.returncode, done.stderr
    else:
        die = (str(tmp_path / "out"), int(rng.integers(1, 60)) if rng else 10**6)
        job = small.fork(*arguments, module="uniadapter_jax.prepare", die=die)
        said = job.end(seconds=300)
        status = job.wait(0)
    assert status in (0, -signal.SIGKILL, 128 + signal.SIGKILL), said
    # What orphans say while they start is Python's.
    assert status != 0 or "Traceback" not in said, said
    return status != 0


def prepare_campaign(small, tmp_path, rng, kills, *, traced):
    manifest = media.picture_manifest(tmp_path / "raw", 3 * ITEMS_PER_SHARD, captions=1)
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    common = [f"--config={config}", f"--input={manifest}", "--train_tokenizer=520"]
    arguments = [*common, f"--output={tmp_path / 'out'}"]
    assert not prepare_until_killed(
        small, tmp_path / "whole", [*common, f"--output={tmp_path / 'whole'}"], None, traced=False
    )
    done = 0
    while done < kills:
        limit = int(rng.integers(2, 8))
        while done < kills and limit:
            workers = f"--workers={int(rng.integers(0, 3))}"
            if not prepare_until_killed(small, tmp_path, [*arguments, workers], rng, traced=traced):
                break
            done, limit = done + 1, limit - 1
            # Never half of it: the records are there whole, or not at all.
            assert not (tmp_path / "out").exists() or _content(tmp_path / "out") == _content(
                tmp_path / "whole"
            )
        assert not prepare_until_killed(small, tmp_path, arguments, None, traced=False)
        assert _content(tmp_path / "out") == _content(tmp_path / "whole")
        assert sorted(os.listdir(tmp_path)) == ["config.py", "out", "raw", "whole"]
        print(f"{done} kills", flush=True)
        shutil.rmtree(tmp_path / "out")


@pytest.mark.slow
def test_prepare_killed_while_it_grows(small, tmp_path):
    """Records are always the old ones or the new ones, and no frame of the old is lost."""
    rng = np.random.default_rng(int(os.environ.get("KILLS_SEED", "5")))
    manifest = media.picture_manifest(tmp_path / "raw", 2 * ITEMS_PER_SHARD, captions=1)
    lines = manifest.read_text().splitlines()
    config, out = tmp_path / "config.py", tmp_path / "out"
    config.write_text(CONFIG)
    arguments = [f"--config={config}", f"--input={manifest}", "--workers=0"]

    def run(name, rng):
        outputs = [*arguments, f"--output={tmp_path / name}"]
        return prepare_until_killed(small, tmp_path, outputs, rng, traced=False)

    run("whole", None)
    media.write_manifest(manifest, lines[:-3])
    run("before", None)
    for _ in range(int(os.environ.get("KILLS", "6"))):
        shutil.copytree(tmp_path / "before", out)
        media.write_manifest(manifest, lines)
        killed = run("out", rng)
        there = out if out.exists() else tmp_path / "out.work" / "old"
        assert _content(there) in (_content(tmp_path / "before"), _content(tmp_path / "whole"))
        run("out", None)
        assert _content(out) == _content(tmp_path / "whole"), killed
        assert not (tmp_path / "out.work").exists()
        shutil.rmtree(out)


def _content(directory):
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_prepare_killed_before_changes(small, tmp_path):
    prepare_campaign(small, tmp_path, np.random.default_rng(3), 2, traced=False)


@pytest.mark.slow
def test_prepare_killed_60_times(small, tmp_path):
    rng = np.random.default_rng(int(os.environ.get("KILLS_SEED", "4")))
    kills = int(os.environ.get("KILLS", "60"))
    prepare_campaign(small, tmp_path, rng, kills, traced=bool(STRACE))
