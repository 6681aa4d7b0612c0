"""Cores that may be used, also where the system does not say which."""

from __future__ import annotations

import os
import pathlib
import re

import numpy as np

import uniadapter_jax
from uniadapter_jax.common import cores
from uniadapter_jax.common.cores import usable_cores
from uniadapter_jax.config import base_config
from uniadapter_jax.data.loading.batches import decoding_threads, threads_of_worker
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


def test_processes_of_a_host_share_its_cores(monkeypatch):
    monkeypatch.setattr(cores, "usable_cores", lambda: 8)
    monkeypatch.setattr(cores, "_processes", 1)
    assert decoding_threads(base_config().data) == 8, "all of them is the default"
    cores.share_cores(3)
    config = base_config().data
    assert decoding_threads(config) == 2
    config.workers = 2
    assert threads_of_worker(config) == 1
    config.threads = 5
    assert (decoding_threads(config), threads_of_worker(config)) == (5, 2)
    cores.share_cores(100)
    assert cores.cores_of_process() == 1
