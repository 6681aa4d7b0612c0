"""Cores that may be used, also where the system does not say which."""

from __future__ import annotations

import os
import pathlib
import re

import numpy as np

import uniadapter_jax
from uniadapter_jax.common.cores import usable_cores
from uniadapter_jax.weights.fingerprint import digest, workers

ROOT = pathlib.Path(uniadapter_jax.__file__).parent


def test_linux_says_which():
    assert usable_cores() == len(os.sched_getaffinity(0))


def test_macos_does_not(monkeypatch):
    """A backbone's tensors are hashed by threads there, too."""
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == os.cpu_count()
    with workers() as pool:
        assert len(pool.submit(digest, "x", np.zeros(3, np.float32)).result()) == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


def test_nothing_else_asks_the_system():
    calls = re.compile(r"os\.(sched_getaffinity|cpu_count|process_cpu_count)")
    asking = {path.name for path in ROOT.rglob("*.py") if calls.search(path.read_text())}
    assert asking == {"cores.py"}
