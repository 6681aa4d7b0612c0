"""Protocols as the authors' own evaluation has them, and order that must not count."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from protocol_cases import CASES, case

from uniadapter_jax.tasks.retrieval.metrics import retrieval_ranks, summarize

GOLDEN = pathlib.Path(__file__).parent / "golden" / "protocols.npz"


def ours(similarity, item, v2t):
    ranks = retrieval_ranks(similarity, item, v2t=v2t)
    return {way: summarize(ranks[way]) for way in ("t2v", "v2t")}


EVERY = [pytest.param(8, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)]


def test_cases_have_no_ties():
    for number in range(0, CASES, 50):
        similarity, _ = case(number)
        assert len(np.unique(similarity)) == similarity.size


# Of whose evaluation: our rule of v2t, and the numbers that theirs gives.
RECALLS = ("R@1", "R@5", "R@10")
THEIRS = {
    "clip4clip": ("max_pool", {"t2v": (*RECALLS, "MnR"), "v2t": (*RECALLS, "MdR", "MnR")}),
    "blip": ("best_caption", {"t2v": RECALLS, "v2t": RECALLS}),
}


@pytest.mark.parametrize("step", EVERY)
@pytest.mark.parametrize("whose", THEIRS)
def test_numbers_are_those_of_their_own_evaluation(whose, step):
    rows, (rule, names) = np.load(GOLDEN)[whose], THEIRS[whose]
    assert len(rows) == CASES
    for number in range(0, CASES, step):
        made = ours(*case(number), rule)
        numbers = [made[way][name] for way in names for name in names[way]]
        np.testing.assert_allclose(numbers, rows[number], rtol=1e-6, err_msg=str(number))


@pytest.mark.parametrize("v2t", ["best_caption", "max_pool"])
def test_the_order_of_clips_and_texts_does_not_count(v2t):
    """As models that see the order of test pairs would make it; see docs/protocols.md."""
    for number in range(0, CASES, 20):
        similarity, item = case(number)
        rng = np.random.default_rng(number)
        clips, texts = rng.permutation(similarity.shape[1]), rng.permutation(len(item))
        place = np.argsort(clips)  # of a clip among the shuffled
        shuffled = similarity[texts][:, clips], place[item[texts]]
        found, expected = ours(*shuffled, v2t), ours(similarity, item, v2t)
        for way, numbers in expected.items():
            assert found[way] == pytest.approx(numbers)
