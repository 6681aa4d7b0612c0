"""Scores that need all queries of a test set, or a bank of others, before one can be ranked.

They are no part of a model: a search answers one query at a time. So they stand beside the plain
scores where `config.eval.also` asks for them, under their names, and never select a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from uniadapter_jax.common.types import Bool, Float

DSL_SCALE = 100.0  # of cosines in the softmax, CLIP's own
QB_BETA = 20.0  # the released inverse temperature of query-bank normalisation
NAMES = ("dsl", "qb_norm")


def dual_softmax(
    cosines: Float[np.ndarray, "n m"],
) -> tuple[Float[np.ndarray, "n m"], Float[np.ndarray, "n m"]]:
    """Scores for text to clip, and for clip to text (DSL; Cheng et al., 2021, arXiv 2109.04290).

    A cosine is weighted by how much its candidate prefers this query to all others: the softmax
    goes over the queries of the direction.
    """
    return cosines * _softmax(cosines, axis=0), cosines * _softmax(cosines, axis=1)


class QueryBank:
    """Query-bank normalisation (Bogolin et al., CVPR 2022), with its dynamic inverted softmax, k=1.

    bank: cosines "b m" of other queries, in blocks, with the candidates of the test set.
    """

    def __init__(self, bank: Iterable[Float[np.ndarray, "b m"]], candidates: int):
        total = np.zeros(candidates, np.float64)
        hub = np.zeros(candidates, bool)
        for block in bank:
            total += np.exp(QB_BETA * block.astype(np.float64)).sum(axis=0)
            hub[block.argmax(axis=1)] = True
        self.total: Float[np.ndarray, " m"] = total
        self.hub: Bool[np.ndarray, " m"] = hub

    def normalised(self, cosines: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
        """Scores of queries whose best candidate is the best of a bank's query, too.

        The other queries keep their cosines; only the order within a row means anything.
        """
        scores = cosines.astype(np.float64)
        rows = self.hub[cosines.argmax(axis=1)]
        scores[rows] = np.exp(QB_BETA * scores[rows]) / np.maximum(self.total, 1e-300)
        return scores


def _softmax(cosines: np.ndarray, axis: int) -> np.ndarray:
    logits = DSL_SCALE * cosines.astype(np.float64)
    weights = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)
