"""Metrics on matrices small enough to rank by hand, and against brute force over all orders."""

import itertools
import tracemalloc

import numpy as np
import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.tasks.retrieval.metrics import (
    clips_with_text,
    close_pairs,
    paired_bootstrap,
    retrieval_ranks,
    summarize,
)


def ranks_of(similarity, item, **options):
    found = retrieval_ranks(np.asarray(similarity, np.float32), np.asarray(item), **options)
    return {name: found[name].tolist() for name in ("t2v", "v2t")}, found["tied_queries"]


def test_one_text_per_clip_by_hand():
    similarity = [[0.9, 0.1, 0.2], [0.8, 0.5, 0.3], [0.1, 0.7, 0.6]]
    ranks, tied = ranks_of(similarity, [0, 1, 2])
    assert ranks == {"t2v": [1, 2, 2], "v2t": [1, 2, 1]}
    assert tied == {"t2v": 0, "v2t": 0}


def test_several_captions_and_both_protocols_by_hand():
    similarity = [
        [0.5, 0.9, 0.1],  # clip 0
        [0.2, 0.3, 0.4],  # clip 0
        [0.6, 0.7, 0.0],  # clip 1
        [0.7, 0.1, 0.2],  # clip 2
        [0.8, 0.2, 0.3],  # clip 2
    ]
    item = [0, 0, 1, 2, 2]
    ranks, _ = ranks_of(similarity, item)
    assert ranks["t2v"] == [2, 3, 1, 2, 2]
    # Clip 0: own best .5, beaten by .6 .7 .8. Clip 1: own .7, beaten by .9. Clip 2: .3 by .4.
    assert ranks["v2t"] == [4, 2, 2]
    # Pooled over captions (clip 0, 1, 2): clip 0 sees .5 .6 .8, clip 1 .9 .7 .2, clip 2 .4 .0 .3.
    assert ranks_of(similarity, item, v2t="max_pool")[0]["v2t"] == [3, 2, 2]


def test_ties_by_rule_and_a_collapsed_model():
    flat, item = np.zeros((4, 4)), np.arange(4)
    wanted = {"optimistic": 1, "expected": 2.5, "pessimistic": 4}
    for ties, rank in wanted.items():
        ranks, tied = ranks_of(flat, item, ties=ties)
        assert ranks == {"t2v": [rank] * 4, "v2t": [rank] * 4}
        assert tied == {"t2v": 4, "v2t": 4}


def brute_force_expected(similarity, item, v2t):
    """Mean rank over every order of equal scores."""
    n = len(similarity)

    def positions(scores):
        orders = itertools.permutations(range(len(scores)))
        for order in orders:
            ranked = sorted(order, key=lambda i: -scores[i])
            if all(scores[a] >= scores[b] for a, b in itertools.pairwise(ranked)):
                yield {candidate: place for place, candidate in enumerate(ranked, 1)}

    t2v = [np.mean([p[item[i]] for p in positions(similarity[i])]) for i in range(n)]
    result = []
    for j in sorted(set(item)):
        if v2t == "best_caption":
            own = [i for i in range(n) if item[i] == j]
            result.append(np.mean([min(p[i] for i in own) for p in positions(similarity[:, j])]))
        else:
            clips = sorted(set(item))
            scores = [max(similarity[i, j] for i in range(n) if item[i] == k) for k in clips]
            result.append(np.mean([p[clips.index(j)] for p in positions(scores)]))
    return {"t2v": t2v, "v2t": result}


@pytest.mark.parametrize("v2t", ["best_caption", "max_pool"])
@pytest.mark.parametrize("seed", range(4, 8))
def test_expected_rank_is_the_mean_over_all_orders(v2t, seed):
    rng = np.random.default_rng(seed)
    similarity = rng.integers(0, 3, size=(6, 4)).astype(np.float32)
    item = np.array([0, 0, 0, 3, 1, 1])  # clip 2 has no text
    ranks = retrieval_ranks(similarity, item, v2t=v2t, ties="expected")
    for name, wanted in brute_force_expected(similarity, item, v2t).items():
        np.testing.assert_allclose(ranks[name], wanted, rtol=1e-12)


@pytest.mark.parametrize("v2t", ["best_caption", "max_pool"])
def test_clips_without_text_compete_but_are_not_asked_for(v2t):
    similarity, item = [[0.5, 0.9, 0.1], [0.9, 0.2, 0.6]], [0, 2]
    ranks, _ = ranks_of(similarity, item, v2t=v2t)
    assert ranks == {"t2v": [2, 2], "v2t": [2, 1]}
    assert clips_with_text(item).tolist() == [0, 2]


def test_own_captions_that_tie_are_no_rivals():
    ranks, tied = ranks_of([[0.5, 0], [0.5, 0], [0.1, 1]], [0, 0, 1], ties="pessimistic")
    assert ranks["v2t"] == [1, 1] and tied["v2t"] == 0


def test_duplicated_captions_tie_in_v2t():
    similarity = np.array([[0.9, 0.4], [0.9, 0.4]])
    assert ranks_of(similarity, [0, 1])[1] == {"t2v": 0, "v2t": 2}


@pytest.mark.parametrize("v2t", ["best_caption", "max_pool"])
@pytest.mark.parametrize("ties", ["optimistic", "expected", "pessimistic"])
def test_chunks_change_nothing(v2t, ties, monkeypatch):
    rng = np.random.default_rng(0)
    similarity = rng.normal(size=(57, 23)).round(1).astype(np.float16)
    item = rng.integers(0, 23, size=57)
    whole = retrieval_ranks(similarity, item, v2t, ties)
    pairs = close_pairs(similarity, item, v2t)
    monkeypatch.setattr("uniadapter_jax.tasks.retrieval.metrics.CHUNK_BYTES", 8 * 23 * 5)
    parts = retrieval_ranks(similarity, item, v2t, ties)
    for name in ("t2v", "v2t"):
        np.testing.assert_array_equal(parts[name], whole[name])
        chunked = close_pairs(similarity, item, v2t)[name]
        assert sorted(chunked.tolist()) == sorted(pairs[name].tolist())
    assert parts["tied_queries"] == whole["tied_queries"]


def test_nan_names_its_place():
    similarity = np.zeros((9, 5), np.float32)
    similarity[7, 3] = np.nan
    with pytest.raises(UserError, match=r"text 7 and clip 3 .*row 7, column 3"):
        retrieval_ranks(similarity, np.zeros(9, int))


def test_infinite_scores_rank():
    ranks, _ = ranks_of([[-np.inf, 1.0], [-np.inf, 2.0]], [0, 1], ties="pessimistic")
    assert ranks == {"t2v": [2, 1], "v2t": [2, 1]}


@pytest.mark.parametrize("item", [[0, 1], [0, 1, 5], [0, 1, -1], [0.0, 1.0, 2.0]])
def test_a_wrong_map_raises(item):
    with pytest.raises(ValueError):
        retrieval_ranks(np.eye(3), np.asarray(item))


def test_unknown_protocols_raise():
    with pytest.raises(UserError, match="best_caption"):
        retrieval_ranks(np.eye(3), np.arange(3), v2t="mean")
    with pytest.raises(UserError, match="pessimistic"):
        retrieval_ranks(np.eye(3), np.arange(3), ties="random")


def test_summary_by_hand():
    assert summarize([1, 2, 6, 11]) == {
        "R@1": 25.0,
        "R@5": 50.0,
        "R@10": 75.0,
        "MdR": 4.0,
        "MnR": 5.0,
    }
    assert summarize([1.5, 1.0])["R@1"] == 50.0
    with pytest.raises(UserError, match="no queries"):
        summarize([])


def test_close_pairs_lists_what_rounding_may_turn():
    similarity = np.array([[1.0, 1.0 + 1e-7, 0.5], [0.3, 0.3, 0.3 * (1 + 2e-6)], [0.1, 0.9, 0.8]])
    pairs = close_pairs(similarity, np.arange(3))
    assert pairs["t2v"].tolist() == [[0, 1], [1, 0]]
    assert pairs["v2t"].tolist() == []
    wide = close_pairs(similarity, np.arange(3), rel=1e-5)
    assert wide["t2v"].tolist() == [[0, 1], [1, 0], [1, 2]]
    swapped = close_pairs(similarity.T, np.arange(3))
    assert swapped["v2t"].tolist() == [[1, 0], [0, 1]] and swapped["t2v"].tolist() == []


def test_clips_without_text_are_in_no_close_pair_of_v2t():
    similarity = np.array([[0.5, -np.inf], [0.4, -np.inf]])
    assert close_pairs(similarity, np.zeros(2, int))["v2t"].tolist() == []


def test_every_rank_that_a_nudge_turns_is_listed():
    rng = np.random.default_rng(0)
    similarity = rng.integers(0, 40, size=(60, 30)).astype(np.float64) / 7 + 1
    item = rng.integers(0, 30, size=60)
    nudged = similarity * (1 + rng.uniform(-4e-7, 4e-7, size=similarity.shape))
    for v2t in ("best_caption", "max_pool"):
        before, after = (retrieval_ranks(s, item, v2t) for s in (similarity, nudged))
        listed = close_pairs(similarity, item, v2t)
        clips = clips_with_text(item)
        for name, names in (("t2v", np.arange(60)), ("v2t", clips)):
            turned = names[before[name] != after[name]]
            assert len(turned) and set(turned) <= set(listed[name][:, 0])


def test_bootstrap_finds_a_difference_and_none_where_there_is_none():
    rng = np.random.default_rng(0)
    base = rng.integers(1, 60, size=200).astype(float)
    better = paired_bootstrap(base - 3 + rng.normal(size=200), base)
    assert better["low"] < better["difference"] < better["high"] < 0
    assert better["difference"] == pytest.approx(-3, abs=0.3)
    same = paired_bootstrap(base + rng.normal(size=200), base, samples=2000)
    assert same["low"] < 0 < same["high"]


def test_bootstrap_averages_seeds_first_and_is_repeatable():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 50)), rng.normal(size=(2, 50))
    got = paired_bootstrap(a, b, samples=500, seed=4)
    assert got == paired_bootstrap(a.mean(0), b.mean(0), samples=500, seed=4)
    assert got != paired_bootstrap(a, b, samples=500, seed=5)


def test_bootstrap_draws_clips_with_all_their_queries():
    """Ten copies of a query tell no more than one: the interval must not shrink."""
    rng = np.random.default_rng(0)
    gap = rng.normal(size=100)
    single = paired_bootstrap(gap, 0 * gap, samples=4000)
    copies = np.repeat(gap, 10)
    grouped = paired_bootstrap(
        copies, 0 * copies, samples=4000, clips=np.repeat(np.arange(100), 10)
    )
    assert grouped["low"] == pytest.approx(single["low"])
    naive = paired_bootstrap(copies, 0 * copies, samples=1000)
    assert naive["high"] - naive["low"] < 0.5 * (single["high"] - single["low"])
    with pytest.raises(ValueError, match="not the same queries"):
        paired_bootstrap(gap, gap[1:])


def test_memory_stays_far_below_the_matrix():
    similarity = np.random.default_rng(0).normal(size=(12_000, 2_000)).astype(np.float32)
    item = np.arange(12_000) % 2_000
    tracemalloc.start()
    for v2t in ("best_caption", "max_pool"):
        retrieval_ranks(similarity, item, v2t)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 90e6 < similarity.nbytes
