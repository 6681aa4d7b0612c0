"""SIGINT and SIGTERM end a command with one line, a second one at once; nothing is half-written."""

import os
import signal
import subprocess
import sys
import time

import media
import pytest
import small_run
from small_run import OFTEN, PATIENCE

from uniadapter_jax.common import signals
from uniadapter_jax.common.signals import hidden_from_children
from uniadapter_jax.data.preparation.shards import ITEMS_PER_SHARD
from uniadapter_jax.prepare import prepare


def start(*command, **options):
    """A command in a process group of its own, as a terminal has it."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(small_run.ROOT), "JAX_PLATFORMS": "cpu"},
        **options,
    )


def await_line(job, text):
    for line in job.stdout:
        if text in line:
            return
    pytest.fail(f"{text!r} was never said")


def end(job):
    said, _ = job.communicate(timeout=60 * PATIENCE)
    assert "Traceback" not in said and "Fatal" not in said, said
    return said.strip().splitlines()


BUSY = """
import contextlib, hashlib, sys, time
from uniadapter_jax.common import signals

def busy():
    print("begun", flush=True)
    with {context}:
        try:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # Python hears of nothing meanwhile
        finally:
            print("never reached")

signals.GRACE_SECONDS = 0.2
sys.exit(signals.run(busy))
"""


LEFT, RUN = "stopped; no file is half-written.", "stopped; no training step is lost."


@pytest.mark.parametrize(
    ("context", "number", "status", "line"),
    [
        ("contextlib.nullcontext()", signal.SIGINT, 130, LEFT),
        ("contextlib.nullcontext()", signal.SIGTERM, 143, LEFT),
        ("signals.unsaved(lambda: True)", signal.SIGINT, 130, RUN),
        ("signals.unsaved(lambda: True)", signal.SIGTERM, 0, RUN),
    ],
)
def test_a_command_deep_in_native_code_ends_after_a_grace(context, number, status, line):
    job = start("-c", BUSY.format(context=context))
    await_line(job, "begun")
    time.sleep(0.2)
    job.send_signal(number)
    assert end(job) == [line]
    assert job.returncode == status


def test_what_is_unsaved_is_waited_for_until_a_second_signal():
    job = start("-c", BUSY.format(context="signals.unsaved(lambda: False)"))
    await_line(job, "begun")
    time.sleep(0.2)
    job.send_signal(signal.SIGINT)
    time.sleep(1)
    assert job.poll() is None
    job.send_signal(signal.SIGINT)
    assert end(job) == ["ended at once."]
    assert job.returncode == 130


@pytest.mark.parametrize(
    "command",
    [("-m", "uniadapter_jax.main"), (small_run.ROOT / "benchmarks" / "scoring.py", "--quick")],
    ids=["module", "script"],
)
def test_a_command_that_is_still_importing_says_one_line(command):
    job = start("-X", "importtime", *command)
    await_line(job, "uniadapter_jax.common.signals")
    time.sleep(0.05)
    job.send_signal(signal.SIGINT)
    assert end(job)[-1] == "stopped before it began."
    assert job.returncode == 130


def test_scripts_of_ours_hear_of_signals_before_they_import():
    scripts = [*small_run.ROOT.glob("benchmarks/*.py"), *small_run.ROOT.glob("scripts/*.py")]
    assert scripts
    for script in scripts:
        heard, _, rest = script.read_text().partition("signals.end_quietly_while_importing()")
        assert rest and heard.count("import") <= 3, script  # __future__, and signals themselves


PARENT = """
import sys
from uniadapter_jax.common import children, signals

child = "import time; print('begun', flush=True); time.sleep(1000)"
sys.exit(signals.run(lambda: children.run([sys.executable, "-c", child]).returncode))
"""


@pytest.mark.parametrize("times", [1, 2])
def test_a_command_speaks_for_its_children_and_takes_them_along(times):
    job = start("-c", PARENT)
    await_line(job, "begun")
    for _ in range(times):
        os.killpg(job.pid, signal.SIGINT)  # as a terminal does
        time.sleep(0.001)
    said = end(job)  # which waits for all who could still write
    assert len(said) == 1 and job.returncode == 130, said


def interrupted(small, name):
    """The workdir of a run that SIGINT stopped after its first step."""
    flags = (f"--workdir={name}", "--config.train.checkpoint_every=1000")
    job = small.fork(*small.arguments(*flags))
    job.await_(lambda: job.log.exists() and "step 1/" in job.said)
    job.signal(signal.SIGINT)
    said = job.end(130)
    assert said.splitlines()[-1].endswith("Run the same command to go on."), said
    assert "Traceback" not in said
    return small.root / name


def test_sigint_saves(small):
    """By day test_resume goes on from what SIGTERM saved."""
    workdir = interrupted(small, "saved-by-sigint")
    (step,) = small_run.checkpoint_steps(workdir)
    assert len(small_run.losses(workdir)) == step


@pytest.mark.slow
def test_a_run_goes_on_after_sigint(small, whole):
    workdir = interrupted(small, "interrupted")
    small.run("--workdir=interrupted", OFTEN)
    assert small_run.losses(workdir) == small_run.losses(whole)


def test_sigint_while_it_compiles(small, tmp_path):
    arguments = small.arguments(f"--workdir={tmp_path / 'run'}")
    job = start("-m", "uniadapter_jax.main", *arguments, cwd=tmp_path)
    await_line(job, "compiling the training step")
    time.sleep(0.3)
    os.killpg(job.pid, signal.SIGINT)
    said = end(job)
    assert said[-1].startswith("stopped; no training step is lost.")
    assert job.returncode == 130


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_sigint_leaves_prepare_to_be_gone_on_with(tmp_path, workers):
    manifest = media.picture_manifest(tmp_path / "raw", 8 * ITEMS_PER_SHARD, captions=1)
    config = tmp_path / "config.py"
    config.write_text(
        "from uniadapter_jax.config import base_config\n"
        "def get_config():\n"
        "    config = base_config()\n"
        f"    config.data.prepare = {vars(media.settings())!r}\n"
        "    return config\n"
    )
    command = [f"--config={config}", f"--input={manifest}", f"--output={tmp_path / 'out'}"]
    job = start("-m", "uniadapter_jax.prepare", *command, f"--workers={workers}")
    await_line(job, "decoding 128 items")
    time.sleep(0.2)
    os.killpg(job.pid, signal.SIGINT)
    said = end(job)
    assert said[-1] == "stopped; no file is half-written. Run the same command to go on."
    assert job.returncode == 130
    prepare(media.settings(), str(manifest), str(tmp_path / "out"))
    prepare(media.settings(), str(manifest), str(tmp_path / "undisturbed"))
    assert small_run.tree_hash(tmp_path / "out") == small_run.tree_hash(tmp_path / "undisturbed")


def test_a_killed_data_worker_saves_and_says_so(small):
    job = small.fork(
        *small.arguments("--workdir=orphan", "--config.train.checkpoint_every=10000"),
        "--config.train.steps=5000",
        "--config.data.workers=1",
        "--config.data.prefetch_mb=1",
    )
    job.await_(lambda: job.log.exists() and "step 10/" in job.said)
    workers = children(job.pid)
    assert workers
    for child in workers:
        os.kill(child, signal.SIGKILL)
    said = job.end(1)
    (step,) = small_run.checkpoint_steps(small.root / "orphan")
    assert "error: a data worker died" in said and f"; step {step} is saved" in said, said
    assert "Traceback" not in said and len(small_run.losses(small.root / "orphan")) == step


def children(pid):
    """Processes that are at work for it; the tracker of shared memory is none."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "-o", "args=", "--ppid", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    return [int(line.split()[0]) for line in listed if "resource_tracker" not in line]


@pytest.mark.parametrize("command", ["convert", "export"])
def test_sigint_leaves_nothing_half_written(small, whole, tmp_path, command):
    arguments = {
        "convert": [str(tmp_path / "weights"), "--to", str(tmp_path / "out")],
        "export": ["--workdir", str(whole), "--to", str(tmp_path / "out")],
    }[command]
    job = start("-m", f"uniadapter_jax.{command}", *arguments)
    time.sleep(1.0)
    job.send_signal(signal.SIGINT)
    said = end(job)
    assert job.returncode in (0, 130)
    assert job.returncode == 0 or said[-1].startswith("stopped")
    assert (tmp_path / "out").exists() == (job.returncode == 0)


def test_a_signal_amid_the_start_of_a_child_waits_for_its_end():
    steps = []

    def interrupt(number, frame):
        if signals.receive(number, interrupt):
            raise KeyboardInterrupt

    before, received = signal.signal(signal.SIGINT, interrupt), list(signals._received)
    try:
        with pytest.raises(KeyboardInterrupt), hidden_from_children():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            signal.raise_signal(signal.SIGINT)  # as one that another thread took
            steps.append("started")
    finally:
        signal.signal(signal.SIGINT, before)
        signals._received[:] = received
    assert steps == ["started"]
