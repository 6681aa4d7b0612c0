"""SIGTERM stops one process at once, and several at one point of their common work."""

import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from uniadapter_jax.parallel.preemption import Preempted, leaving_on_signal, noting_signal, pass_by

_WORK = """
import sys, time
import jax
from uniadapter_jax.parallel.preemption import Preempted, leaving_on_signal, noting_signal, pass_by

jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]), initialization_timeout=60)
done = 0
with leaving_on_signal():
    with noting_signal(print, bool):  # may not be left
        pass_by()
    print("begun", flush=True)
    try:
        for _ in range(5000):
            time.sleep(0.02)
            done += 1
            pass_by()
    except Preempted:
        print("stopped after", done, flush=True)
"""


def test_one_process_leaves_at_once_or_notes_it():
    before, noted = signal.getsignal(signal.SIGTERM), []
    with leaving_on_signal():
        with noting_signal(lambda: noted.append("asked"), bool):
            os.kill(os.getpid(), signal.SIGTERM)
        assert noted == ["asked"]
        with pytest.raises(Preempted):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_work_that_may_not_be_left_is_not_asked(monkeypatch):
    monkeypatch.setattr("uniadapter_jax.parallel.preemption.reached", lambda: True)
    monkeypatch.setattr("jax.process_count", lambda: 2)
    pass_by()
    with leaving_on_signal():
        with noting_signal(print, bool):
            pass_by()
        with pytest.raises(Preempted):
            pass_by()


def test_two_processes_stop_at_one_point():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", _WORK, address, str(i)],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    assert jobs[1].stdout.readline() == "begun\n"
    jobs[1].send_signal(signal.SIGTERM)
    said = [job.communicate(timeout=100)[0] for job in jobs]
    first, second = (re.search(r"stopped after (\d+)$", text.strip())[1] for text in said)
    assert first == second and int(first) < 5000
    assert [job.returncode for job in jobs] == [0, 0]
