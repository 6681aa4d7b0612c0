"""The second stage of BLIP's retrieval: the best of the first are scored again, pair by pair.

Stage 1 compares features. Of its similarity the k best items of each text and the k best texts of
each item are read together by the text transformer, and get

    score = logit of "match" + beta * similarity         others -100

as in the papers' code, where each direction fills its own k only. A pair that both directions ask
for is scored once. Texts and items are distinct ones: copies of one are counted among the k, and
whoever spreads the scores gives all copies the same, also those that the k would cut off.

Items are encoded again, batch by batch in their order, so the states of one batch exist at a time:
memory does not grow with the gallery, except for the matrices "n m" on the host.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from uniadapter_jax.adapters.partition import Partition
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Float32, Int, PyTree
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.parallel.preemption import pass_by
from uniadapter_jax.parallel.progress import Progress, say
from uniadapter_jax.tasks.matching import reranking_plan as plan
from uniadapter_jax.tasks.matching.pair_scores import PairScorer, Texts
from uniadapter_jax.tasks.matching.reranking_parts import Parts, identity_of

FILL = -100.0  # the score of pairs that the first stage leaves out

Clips = Callable[[Sequence[int]], Iterator[Mapping[str, np.ndarray]]]


class Reranker:
    """Compiled once for all evaluations of an experiment.

    Args:
      options: rerank_k, rerank_rows (pairs that a device scores at once), rerank_beta, and
        frame_weights (UniAdapter's frame-aware attention).
    """

    def __init__(self, part: Partition, mesh: Mesh, options: Any):
        self.options = options
        self.scorer = PairScorer(part, mesh, frame_weights=options.frame_weights)

    def rerank(
        self,
        trainable: PyTree,
        texts: Texts,
        clips: Clips,
        similarity: Float32[np.ndarray, "n m"],
        *,
        copies: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]] | None = None,
        batch: int,
        workdir: pathlib.Path | None = None,
        identity: str = "",
    ) -> tuple[Float32[np.ndarray, "n m"], Float32[np.ndarray, "n m"]]:
        """Scores for text -> item and for item -> text, both "n m", whole on every process.

        Every process calls it alike; only what `clips` gives differs.

        Args:
          clips: called with numbers of items in order, gives this process' rows of their batches,
            as `data.pipeline.clip_batches` of these records does.
          similarity: of the first stage, cosines. k is cut to what it has, which one line says.
          copies: how many texts and items of the set each one stands for; None: itself.
          batch: items of a global batch; divides over the mesh.
          workdir: where finished batches of items are kept until the end, so that the same call
            goes on where a killed one was; None keeps nothing.
          identity: what the scores depend on beside the trainable weights and the texts:
            backbone, items, how they are decoded, dtype.

        Raises:
          UserError: k or rows below 1, a first or second stage that is not finite.
        """
        pairs, first_stage = self._choose(similarity, copies)
        parts = Parts(None, "")
        if workdir is not None:
            known = identity_of(f"{identity} {self.options.frame_weights}", trainable, texts[:2])
            parts = Parts(pathlib.Path(workdir) / "reranking", known)
        starts = np.arange(0, similarity.shape[1], batch)
        logits, done = _read(parts, pairs, starts, batch)
        items = [i for i in range(similarity.shape[1]) if not done[i // batch]]
        progress = Progress("re-ranking", int(np.isin(pairs.item, items).sum()), "pairs")
        lengths, shape = plan.used_lengths(texts.mask), None
        for start, host in zip(starts[~done], clips(items) if items else (), strict=True):
            media = self.scorer.encode(trainable, host, batch)
            shape = shape or self.scorer.shape(pairs, texts, media, self.options.rerank_rows)
            calls = plan.calls(pairs, lengths, shape, start, start + batch, texts.ids.shape[1])
            for place, values in self.scorer.score(trainable, texts, media, calls):
                logits[place] = values
                pass_by()
                progress.advance(len(place))
            part = pairs.of_items(start, start + batch)
            _check_finite(logits[part], pairs, part)
            parts.write(pairs, start, start + batch, logits[part])
        parts.remove()
        scores = logits + np.float32(self.options.rerank_beta) * first_stage
        return (
            _filled(scores, pairs, pairs.t2v, similarity.shape),
            _filled(scores, pairs, pairs.v2t, similarity.shape),
        )

    def _choose(
        self, similarity: np.ndarray, copies: tuple[np.ndarray, np.ndarray] | None
    ) -> tuple[plan.Pairs, np.ndarray]:
        """Pairs and their similarity, by the first process: another machine may round otherwise."""
        k = self.options.rerank_k
        pairs = plan.choose_pairs(similarity, k, copies)
        n, m = similarity.shape if copies is None else (int(count.sum()) for count in copies)
        if k > min(n, m):
            say(f"task.rerank_k={k}, but there are {n} texts and {m} items: of fewer, all are used")
        pairs = plan.Pairs(*(meshes.of_first_process(x) for x in pairs))
        values = similarity[pairs.text, pairs.item].astype(np.float32)
        return pairs, meshes.of_first_process(values)


def _read(
    parts: Parts, pairs: plan.Pairs, starts: np.ndarray, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """(a logit for each pair, which batches of items have theirs) as an earlier run left them."""
    logits, done = np.zeros(len(pairs.text), np.float32), np.zeros(len(starts), np.uint8)
    for i, start in enumerate(starts):
        stored = parts.read(pairs, start, start + batch)
        if stored is not None:
            logits[pairs.of_items(start, start + batch)], done[i] = stored, 1
    logits, done = meshes.of_first_process(logits), meshes.of_first_process(done)
    if done.any():
        say(f"re-ranking goes on: {done.sum()} of {len(done)} batches of items are there")
    return logits, done.astype(bool)


def _check_finite(logits: np.ndarray, pairs: plan.Pairs, part: slice) -> None:
    bad = np.flatnonzero(~np.isfinite(logits))
    if len(bad):
        at = bad[0] + part.start
        raise UserError(
            f"the matching score of text {pairs.text[at]} with item {pairs.item[at]} and "
            f"{len(bad) - 1} more are not finite. Look for NaN in the weights"
        )


def _filled(
    scores: np.ndarray, pairs: plan.Pairs, own: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """The matrix of one direction, which has the scores of its own candidates."""
    matrix = np.full(shape, FILL, np.float32)
    matrix[pairs.text[own], pairs.item[own]] = scores[own]
    return matrix
