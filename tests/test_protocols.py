"""Protocols as the authors' own evaluation has them, and order that must not count."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from protocol_cases import CASES, case
from rerank_case import ITEMS, TEXTS, arrays, clip_source
from test_reranking import one_device, part

from uniadapter_jax.tasks.matching.pair_scores import Texts
from uniadapter_jax.tasks.retrieval.metrics import retrieval_ranks, summarize
from uniadapter_jax.tasks.retrieval.scoring import score
from uniadapter_jax.tasks.retrieval.similarity import SIMILARITIES

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


def shuffled(texts, clips, item, seed=0):
    """Orders of texts and clips, and the clip of each text among those."""
    rng = np.random.default_rng(seed)
    of_texts, of_clips = rng.permutation(texts), rng.permutation(clips)
    return of_texts, of_clips, np.argsort(of_clips)[item[of_texts]]


RULES = ("best_caption", "max_pool")


@pytest.mark.parametrize(
    "texts",
    [pytest.param(23, id="more texts"), pytest.param(5, id="fewer", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_shuffled_clips_change_no_recall(similarity, texts):
    """From features on; three blocks of each, so that places within and across them change."""
    rng, clips = np.random.default_rng(texts), 11
    item = np.concatenate(
        [np.arange(min(texts, clips)), rng.integers(0, clips, max(0, texts - clips))]
    )
    text = rng.standard_normal((texts, 8)).astype(np.float32)
    frames = rng.standard_normal((clips, 4, 8)).astype(np.float32)
    mask = np.arange(4) < rng.integers(1, 5, (clips, 1))
    options = {"similarity": similarity, "temperature": 5.0, "block": (8, 4)}
    of_texts, of_clips, place = shuffled(texts, clips, item)
    plain = score(text, frames, mask, **options)
    moved = score(text[of_texts], frames[of_clips], mask[of_clips], **options)
    np.testing.assert_allclose(moved, plain[of_texts][:, of_clips], atol=1e-6)
    for rule in RULES:
        assert ours(moved, place, rule) == ours(plain, item, rule)


@pytest.mark.slow
def test_shuffled_clips_change_no_recall_of_re_ranking():
    ids, mask, features, similarity, clips, present = arrays()
    item = np.arange(TEXTS) % ITEMS
    of_texts, of_clips, place = shuffled(TEXTS, ITEMS, item)
    stage = one_device(1, False)

    def matrices(texts, media):
        source = clip_source(clips[media], present[media], 4)
        read = Texts(ids[texts], mask[texts], features[texts])
        first = similarity[texts][:, media]
        return stage.rerank(part().trainable, read, source, first, batch=4)

    plain = matrices(np.arange(TEXTS), np.arange(ITEMS))
    moved = matrices(of_texts, of_clips)
    for ours_moved, ours_plain in zip(moved, plain, strict=True):
        np.testing.assert_allclose(ours_moved, ours_plain[of_texts][:, of_clips], atol=1e-5)
        for rule in RULES:
            assert ours(ours_moved, place, rule) == ours(ours_plain, item, rule)
