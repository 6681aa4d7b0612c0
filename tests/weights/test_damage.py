"""One file of a backbone, an adapter or a tokenizer is harmed, or hostile from the start.

It is named, or nothing has changed. Nothing else: no other numbers, no traceback, no hang, and
memory within bounds.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import hostile_json
import numpy as np
import pytest
import sound_weights
from damage import damage

from uniadapter_jax.common.errors import UserError


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return sound_weights.make(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def expected(sound):
    return {
        name: sound_weights.numbers(load(sound / name, sound))
        for name, load in sound_weights.LOADERS.items()
    }


def harmed(name, root, sound, expected, rng):
    """(what was done, whether it was told) of one harm to a copy of a sound directory."""
    place = root / name
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(sound / name, place)
    done = damage(place, rng)
    try:
        model = sound_weights.LOADERS[name](place, sound)
        found = sound_weights.numbers(model)
    except UserError as error:
        file = done.partition(":")[0].rpartition("/")[2]
        assert file in str(error) or f"{place}" in str(error), f"{done}: not named in {error}"
        return done, True
    assert found == expected[name], f"{done}: silent"
    return done, False


@pytest.mark.parametrize("name", sound_weights.LOADERS)
@pytest.mark.parametrize("count", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_damage_is_told(name, count, sound, expected, tmp_path):
    rng = np.random.default_rng([count, len(name)])
    seen = [harmed(name, tmp_path, sound, expected, rng) for _ in range(count)]
    if count > 10:
        assert sum(told for _, told in seen) > count / 4, seen
        print(f"{name}: {sum(told for _, told in seen)} of {count} told, the others equal")


def test_hostile_files_are_told(sound, tmp_path):
    for case in hostile_json.cases(sound, seed=0, count=18):
        outcome = hostile_json.attempt(case, tmp_path / "case")
        assert outcome in ("told", "loaded"), outcome


@pytest.mark.slow
def test_many_hostile_files_in_little_memory(sound, tmp_path):
    """In a process of its own, with what it has imported."""
    here = pathlib.Path(__file__).parent
    places = [str(place) for place in (here.parents[1], here, here.parent)]
    done = subprocess.run(
        [sys.executable, str(here / "hostile_json.py"), str(sound), str(tmp_path), "1", "700"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        check=True,
        timeout=1800,
    )
    found = json.loads(done.stdout)
    print(found)
    assert not found["wrong"], "\n".join(found["wrong"])
    assert found["told"] > 500 and found["mb"] < 500
