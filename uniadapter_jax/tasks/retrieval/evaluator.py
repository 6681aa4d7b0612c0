"""Evaluation of retrieval: from trainables and a split to what goes into `result.json`.

Both sides of a split are embedded once and compared in blocks. `config.task.ties` alone says what
equal scores mean.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from ml_collections import ConfigDict

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import PyTree
from uniadapter_jax.data.records import Records
from uniadapter_jax.tasks.base import Subject
from uniadapter_jax.tasks.encoding import Encoder, TwoTower
from uniadapter_jax.tasks.retrieval import metrics
from uniadapter_jax.tasks.retrieval.all_queries import QueryBank, dual_softmax
from uniadapter_jax.tasks.retrieval.split_texts import SplitTexts

BANK_BLOCK = 4096  # training captions that are compared at once


def also_of(config: ConfigDict) -> tuple[str, ...]:
    """The names in `config.eval.also`."""
    return tuple(name.strip() for name in config.eval.also.split(",") if name.strip())


class Embedded(NamedTuple):
    """A split, embedded: ids "n l" and features "n c" of texts, what the task keeps of clips, and
    the mask "m f" of their frames."""

    ids: np.ndarray
    text: np.ndarray
    clips: Any
    mask: np.ndarray


class RetrievalEvaluator:
    """Ranks of every query of a split, in both directions."""

    def __init__(self, subject: Subject, workdir: pathlib.Path | None = None):
        self.subject = subject
        self.workdir = workdir  # of an evaluation that takes hours
        self.encoder = Encoder(subject)
        self.also = also_of(subject.config)
        self.texts = SplitTexts(self.encoder.text_ids)
        if "qb_norm" in self.also and subject.data.train is None:
            raise UserError(
                "config.eval.also='qb_norm' takes the captions of the training split as its bank, "
                "and config.method.name trains nothing; leave it out"
            )

    def __call__(self, trainable: PyTree, records: Records) -> dict[str, Any]:
        """Measures a split for `result.json`; all processes return the same.

        {"metrics", "pessimistic_metrics", "ranks", "query_ids", "tied_queries", "texts", "clips"}:
        metrics and ranks count ties as `config.task.ties` says, `pessimistic_metrics` count them
        as misses, and select a checkpoint. Every clip and every caption counts once, on any mesh.

        Raises:
          UserError: features that are not finite; the first clip or caption is named.
        """
        _, text_item, ids, text_ids = self.texts.of(records)
        clips, mask = self.encoder.clips(trainable, records)
        text = self.encoder.ids(trainable, ids)
        for features in jax.tree.leaves(clips):
            _check_finite(features, records.ids)
        _check_finite(text, text_ids)
        options = self.subject.config.task
        embedded = Embedded(ids, text, clips, mask)
        scores = self.scores(trainable, records, embedded)
        tests = records is self.subject.data.test  # a measure that selects has no further rows

        def rank(similarity: np.ndarray) -> dict[str, Any]:
            return metrics.retrieval_ranks(
                similarity, text_item, v2t=options.v2t, ties=options.ties
            )

        ranked_by_way = {"t2v": rank(scores["t2v"])}
        one = scores["v2t"] is scores["t2v"]
        ranked_by_way["v2t"] = ranked_by_way["t2v"] if one else rank(scores["v2t"])
        ranks = {way: ranked[way] for way, ranked in ranked_by_way.items()}
        return {
            "metrics": {way: metrics.summarize(of) for way, of in ranks.items()},
            "pessimistic_metrics": {
                way: metrics.summarize(ranked["pessimistic"][way])
                for way, ranked in ranked_by_way.items()
            },
            "ranks": {way: of.tolist() for way, of in ranks.items()},
            "query_ids": {
                "t2v": text_ids,
                "v2t": [records.ids[i] for i in metrics.clips_with_text(text_item)],
            },
            "tied_queries": {
                way: ranked["tied_queries"][way] for way, ranked in ranked_by_way.items()
            },
            **(self._also(trainable, embedded, scores, rank) if tests else {}),
            "texts": len(text_ids),
            "clips": len(records),
        }

    def _also(
        self,
        trainable: PyTree,
        embedded: Embedded,
        scores: Mapping[str, np.ndarray],
        rank: Callable[[np.ndarray], dict[str, Any]],
    ) -> dict[str, Any]:
        """{"also": {name: {direction: metrics}}} of the further scores; {} without any."""
        further: dict[str, dict[str, np.ndarray]] = {}
        if "dsl" in self.also:
            further["dsl"] = dict(zip(metrics.DIRECTIONS, dual_softmax(scores["t2v"]), strict=True))
        if "qb_norm" in self.also:
            bank = QueryBank(self._bank(trainable, embedded), len(embedded.mask))
            further["qb_norm"] = {"t2v": bank.normalised(scores["t2v"])}
        if not further:
            return {}
        return {
            "also": {
                name: {way: metrics.summarize(rank(of)[way]) for way, of in ways.items()}
                for name, ways in further.items()
            }
        }

    def _bank(self, trainable: PyTree, embedded: Embedded) -> Iterator[np.ndarray]:
        """Scores of the distinct training captions with the test's clips, in blocks."""
        task, train = cast(TwoTower, self.subject.task), self.subject.data.train
        assert train is not None
        captions = sorted({caption for clip in train.captions for caption in clip})
        for start in range(0, len(captions), BANK_BLOCK):
            text = self.encoder.texts(trainable, captions[start : start + BANK_BLOCK])
            yield task.similarity(text, embedded.clips, embedded.mask)

    def scores(
        self, trainable: PyTree, records: Records, embedded: Embedded
    ) -> dict[str, np.ndarray]:
        """Per direction the scores "n m" of all texts and clips."""
        task = cast(TwoTower, self.subject.task)
        return dict.fromkeys(metrics.DIRECTIONS, task.similarity(*embedded[1:]))


def _check_finite(features: np.ndarray, names: list[str]) -> None:
    """A similarity may hide a NaN; scores of 0 would tie, and ties count as hits."""
    bad = ~np.isfinite(features).all(axis=tuple(range(1, features.ndim)))
    if bad.any():
        raise UserError(
            f"the features of {names[int(np.argmax(bad))]} and {int(bad.sum()) - 1} more are not "
            "finite, so ranks would mean nothing. Look for NaN in the weights"
        )


def selection_value(result: Mapping[str, Any], name: str) -> float:
    """Rsum (R@1 + R@5 + R@10 of both directions), or one metric such as `t2v/R@1`.

    `result` is what an evaluator returns. Ranks are the pessimistic ones: by others a model that
    scores everything alike would be the best.
    """
    values = result.get("pessimistic_metrics", result["metrics"])
    if name == "Rsum":
        return float(
            sum(values[way][f"R@{k}"] for way in metrics.DIRECTIONS for k in metrics.RECALLS)
        )
    way, _, metric = name.partition("/")
    value = float(values[way][metric])
    return -value if metric in ("MdR", "MnR") else value
