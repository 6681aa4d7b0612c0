"""Evaluation of matching: the best of the first stage are scored again by the fusion encoder."""

from __future__ import annotations

import pathlib

import numpy as np

from uniadapter_jax.common.distinct import distinct, distinct_rows
from uniadapter_jax.common.types import PyTree
from uniadapter_jax.data.records import Records
from uniadapter_jax.parallel.progress import say
from uniadapter_jax.tasks.base import Subject
from uniadapter_jax.tasks.matching.pair_scores import Texts
from uniadapter_jax.tasks.matching.reranking import Reranker
from uniadapter_jax.tasks.retrieval import caveats, metrics
from uniadapter_jax.tasks.retrieval.evaluator import Embedded, RetrievalEvaluator


class MatchingEvaluator(RetrievalEvaluator):
    """The same, but the best of the first stage are scored again by matching."""

    def __init__(self, subject: Subject, workdir: pathlib.Path | None = None):
        super().__init__(subject, workdir)
        options = subject.config.task
        self.reranker = None
        test = subject.data.test
        texts = sum(map(len, test.captions))
        for line in caveats.beyond_reranking(options.rerank_k, texts=texts, clips=len(test)):
            say(f"warning: {line}")
        if options.rerank_k:
            self.reranker = Reranker(subject.partition, subject.mesh, options)

    def scores(
        self, trainable: PyTree, records: Records, embedded: Embedded
    ) -> dict[str, np.ndarray]:
        """Matching scores of the `rerank_k` best of either side, -100 for the others."""
        first = super().scores(trainable, records, embedded)
        if self.reranker is None:
            return first
        e = self.subject
        same_texts, same_clips = distinct_rows(embedded.ids), distinct(records.contents)
        ids, text = same_texts.take(embedded.ids), same_texts.take(embedded.text)
        clips_once = records.subset(same_clips.first)
        reranked = self.reranker.rerank(
            trainable,
            Texts(ids, ids != e.model_config.pad_id, text),
            lambda items: e.clip_batches(clips_once.subset(items)),
            same_clips.take(same_texts.take(first["t2v"]), axis=1),
            copies=(same_texts.counts, same_clips.counts),
            batch=e.eval_batch,
            workdir=self.workdir,
            identity=f"{records.fingerprint} {e.identity}",
        )
        spread = (same_clips.spread(same_texts.spread(scores), axis=1) for scores in reranked)
        return dict(zip(metrics.DIRECTIONS, spread, strict=True))
