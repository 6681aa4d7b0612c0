"""Blockwise scores equal the similarity itself, whatever the block, and never recompile."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from test_similarity import data, naive

from uniadapter_jax.tasks.retrieval import scoring
from uniadapter_jax.tasks.retrieval.scoring import score

NAMES = ("q_score", "mean_pool", "mean_pool_unit")


@pytest.mark.parametrize("similarity", NAMES)
@pytest.mark.parametrize("block", [(1024, 256), (4, 3), (1, 1), (13, 2), (7, 11)])
def test_any_block_gives_the_whole_matrix(similarity, block):
    text, frames, mask = data(n=13, m=11, f=4, c=8)
    got = score(
        text.astype(np.float32),
        frames.astype(np.float32),
        mask,
        similarity=similarity,
        temperature=5.0,
        block=block,
    )
    assert got.shape == (13, 11) and got.dtype == np.float32
    np.testing.assert_allclose(got, naive(similarity, text, frames, mask, 5.0), atol=2e-6)


def test_jax_arrays_and_bfloat16():
    text, frames, mask = data(n=5, m=4)
    t, v = (jnp.asarray(x, jnp.bfloat16) for x in (text, frames))
    rounded = (np.asarray(x, np.float64) for x in (t, v))
    got = score(t, v, jnp.asarray(mask), similarity="q_score", temperature=5.0)
    np.testing.assert_allclose(got, naive("q_score", *rounded, mask, 5.0), atol=2e-6)


def test_one_program_for_all_blocks():
    text, frames, mask = data(n=23, m=17, f=3, c=5)
    before = scoring._compare._cache_size(), scoring._summarise._cache_size()
    for n, m in ((23, 17), (8, 6), (20, 9)):
        score(
            text[:n].astype(np.float32),
            frames[:m].astype(np.float32),
            mask[:m],
            similarity="q_score",
            temperature=3.0,
            block=(8, 6),
        )
    after = scoring._compare._cache_size(), scoring._summarise._cache_size()
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1)


def test_nothing_to_score():
    empty = score(
        np.zeros((0, 4), np.float32),
        np.zeros((3, 2, 4), np.float32),
        np.ones((3, 2), bool),
        similarity="q_score",
        temperature=5.0,
    )
    assert empty.shape == (0, 3)


def test_wrong_shapes_raise():
    text, frames, mask = data()
    with pytest.raises(ValueError, match=r"not \(n, c\)"):
        score(text, frames, mask.T, similarity="q_score", temperature=5.0)
    with pytest.raises(ValueError, match=r"not \(n, c\)"):
        score(text[:, 1:], frames, mask, similarity="q_score", temperature=5.0)


def test_the_benchmark_runs():
    script = Path(__file__).parents[1] / "benchmarks" / "scoring.py"
    run = subprocess.run(
        [sys.executable, script, "--quick"], capture_output=True, text=True, check=True
    )
    speed, memory = map(json.loads, run.stdout.splitlines())
    assert speed["largest_difference"] < 1e-5 and memory["growth_mb"] >= 0
