"""Scores that need all queries: their formulas by hand, and their place beside the plain ones."""

import numpy as np
import pytest
from test_preflight import config_of

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.config import base_config, validate
from uniadapter_jax.runs.assembly import build
from uniadapter_jax.tasks.retrieval import metrics
from uniadapter_jax.tasks.retrieval.all_queries import QueryBank, dual_softmax

COSINES = np.array([[0.30, 0.31], [0.10, 0.32], [0.25, 0.20]], np.float32)


def softmax(values):
    weights = [np.exp(100 * float(v)) for v in values]
    return np.array(weights) / sum(weights)


def test_dual_softmax_goes_over_the_queries_of_each_direction():
    t2v, v2t = dual_softmax(COSINES)
    for j in range(2):
        np.testing.assert_allclose(t2v[:, j], COSINES[:, j] * softmax(COSINES[:, j]), rtol=1e-6)
    for i in range(3):
        np.testing.assert_allclose(v2t[i], COSINES[i] * softmax(COSINES[i]), rtol=1e-6)
    assert COSINES[0].argmax() == 1 and t2v[0].argmax() == 0  # clip 1 prefers the second text


def test_a_query_bank_lowers_its_hub_alone():
    bank = np.array([[0.1, 0.4], [0.2, 0.3]], np.float32)  # clip 1 is the best of both
    norm = QueryBank([bank[:1], bank[1:]], 2)
    total = np.exp(20 * bank.astype(np.float64)).sum(0)
    scores = norm.normalised(COSINES)
    np.testing.assert_allclose(scores[0], np.exp(20 * COSINES[0].astype(float)) / total, rtol=1e-6)
    np.testing.assert_allclose(scores[2], COSINES[2], rtol=1e-6)  # its best is no hub
    assert scores[0].argmax() == 0


def test_rows_beside_the_plain_ones(small):
    made = build(config_of(small, "retrieval", **{"eval.also": "dsl, qb_norm"}))
    plain = build(config_of(small, "retrieval"))
    assert made.identity == plain.identity
    assert made.evaluation == {**plain.evaluation, "eval.also": "dsl, qb_norm"}
    evaluate = made.kind.evaluator(made, None)
    result = evaluate(made.partition.trainable, made.data.test)
    assert {name: set(ways) for name, ways in result["also"].items()} == {
        "dsl": {"t2v", "v2t"},
        "qb_norm": {"t2v"},
    }
    assert "also" not in evaluate(made.partition.trainable, made.data.train)
    seen = {}
    scores = evaluate.scores
    evaluate.scores = lambda *given: seen.setdefault("scores", scores(*given))
    evaluate(made.partition.trainable, made.data.test)
    counts = [len(captions) for captions in made.data.test.captions]
    text_item = np.repeat(np.arange(len(counts)), counts)
    dsl = dual_softmax(seen["scores"]["t2v"])[0]
    ranks = metrics.retrieval_ranks(dsl, text_item, v2t="best_caption", ties="optimistic")["t2v"]
    assert result["also"]["dsl"]["t2v"] == metrics.summarize(ranks)


def test_names_that_a_task_does_not_have():
    for task, value in (("retrieval", "dls"), ("vqa", "dsl"), ("matching", "qb_norm")):
        config = base_config(task=task)
        config.eval.also = value
        with pytest.raises(UserError, match=r"config\.eval\.also="):
            validate(config)


def test_a_bank_needs_training_captions(small):
    config = config_of(small, "retrieval", **{"eval.also": "qb_norm"})
    made = build(config)
    made.data.train = None
    with pytest.raises(UserError, match="takes the captions of the training split"):
        made.kind.evaluator(made, None)
