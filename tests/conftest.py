"""Strict modes for every test: 8 fake CPU devices, no silent promotion of dtype or rank."""

import os

import fast_xla

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a name that is no directory asks nobody
# Lines of Python in programs help whoever reads them; to write them down takes a tenth of the time.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count=8 {fast_xla.FLAGS}"
)

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

import browser  # noqa: E402
from small_run import compiled, small, whole  # noqa: E402, F401 (session fixtures)

# Begun first, so that the workers of pytest-xdist end together.
LONGEST = ("processes", "demo", "resume", "bad_input", "export", "run", "adapters", "partition")


def pytest_collection_modifyitems(items):
    """Whole files in order of `LONGEST`; the others as they were."""
    rank = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="module")
def chromium():
    """The browser that the tests of a module share."""
    with browser.started() as started:
        yield started
