"""Processes of a grid: whatever ends them is told, and they end with the one that asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from uniadapter_jax.benchmark import worker

PATIENCE = float(os.environ.get("TEST_PATIENCE", "1"))
ASKING = """
import pathlib, sys, time
from uniadapter_jax.benchmark import worker

worker.call(time.sleep, 60, log=pathlib.Path(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (sum, ([1, 2],), worker.Outcome(3)),
        (int, ("x",), "ValueError: invalid literal"),
        (os._exit, (7,), "ended with status 7"),
        (signal.raise_signal, (signal.SIGKILL,), "ended by SIGKILL; the system may have been out"),
        (signal.raise_signal, (signal.SIGABRT,), "ended by SIGABRT"),
    ],
)
def test_how_a_process_ends(tmp_path, function, arguments, expected):
    outcome = worker.call(function, *arguments, log=tmp_path / "log.txt")
    if isinstance(expected, str):
        assert outcome.value is None and expected in outcome.error
    else:
        assert outcome == expected


def test_output_goes_to_the_log(tmp_path):
    worker.call(print, "from the run", log=tmp_path / "a" / "log.txt")
    worker.call(print, "and the next", log=tmp_path / "a" / "log.txt")
    assert (tmp_path / "a" / "log.txt").read_text() == "from the run\nand the next\n"


def test_a_process_ends_with_the_one_that_asked(tmp_path):
    """Killed, it cannot tell anybody."""
    said = tmp_path / "log.txt"
    asking = subprocess.Popen([sys.executable, "-c", ASKING, str(said)])
    deadline = time.monotonic() + 60 * PATIENCE
    while not said.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert holders(said), "it has begun"
    asking.kill()
    asking.wait()
    while holders(said) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not holders(said)


def holders(path):
    """Processes that have the file open."""
    open_by = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            files = [
                os.readlink(f"/proc/{process}/fd/{n}") for n in os.listdir(f"/proc/{process}/fd")
            ]
        except OSError:
            continue
        if str(path) in files:
            open_by.append(process)
    return open_by
