"""Evaluation by task: a function from trainables and a split to what goes into `result.json`.

Retrieval embeds both sides of a split once and compares them in blocks; matching takes the best of
that and looks again. Equal texts, and clips whose stored frames are equal, are computed once: their
scores tie to the bit, and `config.task.ties` alone says what that means.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import jax
import numpy as np
from jax.sharding import Mesh

from uniadapter_jax.adapters.partition import Partition
from uniadapter_jax.backbones.clip import CLIPConfig, check_ids
from uniadapter_jax.common.distinct import distinct, distinct_rows
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Array, PyTree
from uniadapter_jax.data.records import Records
from uniadapter_jax.data.tokenizers.caption_text import TextRule
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.parallel.preemption import pass_by
from uniadapter_jax.parallel.progress import Progress, say
from uniadapter_jax.runs import caveats
from uniadapter_jax.runs.assembly import Experiment
from uniadapter_jax.tasks.base import Batch
from uniadapter_jax.tasks.matching.pair_scores import Texts
from uniadapter_jax.tasks.matching.reranking import Reranker
from uniadapter_jax.tasks.retrieval import metrics
from uniadapter_jax.tasks.vqa.evaluator import VqaEvaluator

TEXTS_PER_CLIP = 8  # a text costs about an eighth of a clip; see config.eval.batch_size


class Evaluator(Protocol):
    """What the training loop and a run know of evaluation."""

    def __call__(self, trainable: PyTree, records: Records) -> dict[str, Any]:
        """{"metrics": {group: {name: value}}, ...}, equal on all processes."""


class TwoTower(Protocol):
    """What evaluation asks of a task that compares clips with texts."""

    def encode_clips(self, model: Any, batch: Batch) -> PyTree: ...

    def encode_texts(self, model: Any, batch: Batch) -> Array: ...

    def similarity(self, text: np.ndarray, clips: Any, mask: np.ndarray) -> np.ndarray: ...


def make_evaluator(experiment: Experiment, workdir: pathlib.Path | None = None) -> Evaluator:
    """The evaluation of the experiment's task; `workdir` keeps what a long one has done."""
    if experiment.kind.name == "vqa":
        return VqaEvaluator(experiment, workdir)
    if experiment.kind.name == "matching":
        return MatchingEvaluator(experiment, workdir)
    return RetrievalEvaluator(experiment)


def make_encoders(task: TwoTower, part: Partition, mesh: Mesh) -> tuple[Callable[..., Any], ...]:
    """Compiled (clips, texts): each (trainable, frozen, batch) -> features, whole everywhere.

    Whole on every device, so that every process can read them.
    """

    def frames(trainable: PyTree, frozen: PyTree, batch: Batch) -> PyTree:
        return task.encode_clips(part.merge(trainable, frozen), batch)

    def text(trainable: PyTree, frozen: PyTree, batch: Batch) -> Array:
        return task.encode_texts(part.merge(trainable, frozen), batch)

    everywhere = meshes.replicated(mesh)
    return jax.jit(frames, out_shardings=everywhere), jax.jit(text, out_shardings=everywhere)


class Encoder:
    """The two compiled embedding functions of an experiment; one compilation for all calls."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        task = cast(TwoTower, experiment.task)
        self._frames, self._text = make_encoders(task, experiment.partition, experiment.mesh)

    def _run(self, function: Callable[..., Any], trainable: PyTree, host: Any, size: int) -> Any:
        batch = meshes.put_batch(host, self.experiment.mesh, size)
        return meshes.fetch(function(trainable, self.experiment.partition.frozen, batch))

    def clips(self, trainable: PyTree, records: Records) -> tuple[Any, np.ndarray]:
        """What the task keeps of every clip, such as frame features "m f c", and mask "m f"."""
        same = distinct(records.contents)
        encoded = self._distinct_clips(trainable, records.subset(same.first))
        features, mask = jax.tree.map(same.spread, encoded)
        return features, mask

    def _distinct_clips(self, trainable: PyTree, records: Records) -> tuple[Any, np.ndarray]:
        e = self.experiment
        size = e.eval_batch
        progress = Progress("embedding clips", len(records), "clips")
        parts, masks = [], []
        for host in e.clip_batches(records):
            batch = {name: host[name] for name in ("frames", "frame_mask")}
            parts.append(self._run(self._frames, trainable, batch, size))
            masks.append(meshes.fetch(meshes.put_everywhere(batch["frame_mask"], e.mesh, size)))
            pass_by()
            progress.advance(size)
        count = len(records)  # rows beyond it pad the last batch
        features = jax.tree.map(lambda *rows: np.concatenate(rows)[:count], *parts)
        return features, np.concatenate(masks)[:count]

    def text_ids(self, captions: list[str]) -> np.ndarray:
        """Ids "n l" of every caption."""
        e = self.experiment
        data = e.config.data
        rule = TextRule(data.preprocess, data.max_words)
        ids = e.tokenizer.encode(rule.captions(captions), data.words)
        if isinstance(e.model_config, CLIPConfig):
            check_ids(ids, e.model_config)
        return ids

    def texts(self, trainable: PyTree, captions: list[str]) -> np.ndarray:
        """Features "n c" of every caption."""
        return self.ids(trainable, self.text_ids(captions))

    def ids(self, trainable: PyTree, ids: np.ndarray) -> np.ndarray:
        """Features "n c" of rows of ids."""
        same = distinct_rows(ids)
        return same.spread(self._distinct_ids(trainable, same.take(ids)))

    def _distinct_ids(self, trainable: PyTree, ids: np.ndarray) -> np.ndarray:
        size, parts = self.experiment.eval_batch * TEXTS_PER_CLIP, []
        rows = meshes.rows_of_process(self.experiment.mesh, size)
        for start in range(0, len(ids), size):
            chosen = np.minimum(start + rows, len(ids) - 1)  # the last row fills up the last batch
            parts.append(self._run(self._text, trainable, {"text": ids[chosen]}, size))
        return np.concatenate(parts)[: len(ids)]


class RetrievalEvaluator:
    """Ranks of every query of a split, in both directions."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.encoder = Encoder(experiment)

    def __call__(self, trainable: PyTree, records: Records) -> dict[str, Any]:
        """What goes into `result.json`, equal on all processes.

        {"metrics", "pessimistic_metrics", "ranks", "query_ids", "tied_queries", "texts", "clips"}:
        metrics and ranks count ties as `config.task.ties` says, `pessimistic_metrics` count them
        as misses, and select a checkpoint. Every clip and every caption counts once, on any mesh.

        Raises:
          UserError: features that are not finite; the first clip or caption is named.
        """
        captions = [caption for clip in records.captions for caption in clip]
        text_item = np.repeat(np.arange(len(records)), [len(clip) for clip in records.captions])
        clips, mask = self.encoder.clips(trainable, records)
        ids = self.encoder.text_ids(captions)
        text = self.encoder.ids(trainable, ids)
        text_ids = [
            f"{clip}#{j}"
            for clip, own in zip(records.ids, records.captions, strict=True)
            for j in range(len(own))
        ]
        for features in jax.tree.leaves(clips):
            _check_finite(features, records.ids)
        _check_finite(text, text_ids)
        options = self.experiment.config.task
        scores = self.scores(trainable, records, ids, text, clips, mask)

        def rank(similarity: np.ndarray) -> dict[str, Any]:
            return metrics.retrieval_ranks(
                similarity, text_item, v2t=options.v2t, ties=options.ties
            )

        found = {"t2v": rank(scores["t2v"])}
        one = scores["v2t"] is scores["t2v"]
        found["v2t"] = found["t2v"] if one else rank(scores["v2t"])
        ranks = {way: ranked[way] for way, ranked in found.items()}
        return {
            "metrics": {way: metrics.summarize(of) for way, of in ranks.items()},
            "pessimistic_metrics": {
                way: metrics.summarize(ranked["pessimistic"][way]) for way, ranked in found.items()
            },
            "ranks": {way: of.tolist() for way, of in ranks.items()},
            "query_ids": {
                "t2v": text_ids,
                "v2t": [records.ids[i] for i in metrics.clips_with_text(text_item)],
            },
            "tied_queries": {way: ranked["tied_queries"][way] for way, ranked in found.items()},
            "texts": len(captions),
            "clips": len(records),
        }

    def scores(
        self,
        trainable: PyTree,
        records: Records,
        ids: np.ndarray,
        text: np.ndarray,
        clips: Any,
        mask: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Per direction the scores "n m" of all texts and clips."""
        task = cast(TwoTower, self.experiment.task)
        return dict.fromkeys(metrics.DIRECTIONS, task.similarity(text, clips, mask))


class MatchingEvaluator(RetrievalEvaluator):
    """The same, but the best of the first stage are scored again by matching."""

    def __init__(self, experiment: Experiment, workdir: pathlib.Path | None = None):
        super().__init__(experiment)
        self.workdir = workdir
        options = experiment.config.task
        self.reranker = None
        test = experiment.data.test
        texts = sum(map(len, test.captions))
        for line in caveats.beyond_reranking(options.rerank_k, texts=texts, clips=len(test)):
            say(f"warning: {line}")
        if options.rerank_k:
            self.reranker = Reranker(experiment.partition, experiment.mesh, options)

    def scores(
        self,
        trainable: PyTree,
        records: Records,
        ids: np.ndarray,
        text: np.ndarray,
        clips: Any,
        mask: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Matching scores of the `rerank_k` best of either side, -100 for the others."""
        first = super().scores(trainable, records, ids, text, clips, mask)
        if self.reranker is None:
            return first
        e = self.experiment
        same_texts, same_clips = distinct_rows(ids), distinct(records.contents)
        ids, text = same_texts.take(ids), same_texts.take(text)
        clips_once = records.subset(same_clips.first)
        found = self.reranker.rerank(
            trainable,
            Texts(ids, ids != e.model_config.pad_id, text),
            lambda items: e.clip_batches(clips_once.subset(items)),
            same_clips.take(same_texts.take(first["t2v"]), axis=1),
            copies=(same_texts.counts, same_clips.counts),
            batch=e.eval_batch,
            workdir=self.workdir,
            identity=f"{e.backbone.fingerprint} {records.fingerprint} {e.identity}",
        )
        spread = (same_clips.spread(same_texts.spread(scores), axis=1) for scores in found)
        return dict(zip(metrics.DIRECTIONS, spread, strict=True))


def _check_finite(features: np.ndarray, names: list[str]) -> None:
    """A similarity may hide a NaN; scores of 0 would tie, and ties count as hits."""
    bad = ~np.isfinite(features).all(axis=tuple(range(1, features.ndim)))
    if bad.any():
        raise UserError(
            f"the features of {names[int(np.argmax(bad))]} and {int(bad.sum()) - 1} more are not "
            "finite, so ranks would mean nothing. Look for NaN in the weights"
        )


def selection_value(found: Mapping[str, Any], name: str) -> float:
    """Rsum (R@1 + R@5 + R@10 of both directions), or one metric such as `t2v/R@1`.

    `found` is what an evaluator gives. Ranks are the pessimistic ones: by others a model that
    scores everything alike would be the best.
    """
    values = found.get("pessimistic_metrics", found["metrics"])
    if name == "Rsum":
        return float(
            sum(values[way][f"R@{k}"] for way in metrics.DIRECTIONS for k in metrics.RECALLS)
        )
    way, _, metric = name.partition("/")
    value = float(values[way][metric])
    return -value if metric in ("MdR", "MnR") else value
