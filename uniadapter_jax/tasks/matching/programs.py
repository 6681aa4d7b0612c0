"""Programs of an evaluation that re-ranks."""

from __future__ import annotations

import numpy as np

from uniadapter_jax.common.types import PyTree
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.tasks.base import Program, Runnable
from uniadapter_jax.tasks.matching import reranking_plan
from uniadapter_jax.tasks.matching.pair_scores import PairScorer, Texts
from uniadapter_jax.tasks.programs import (
    STATES,
    encoding_programs,
    eval_clips,
    given_frames,
    states_of,
)

RERANK = "re-rank"


def matching_programs(run: Runnable) -> dict[str, Program]:
    """The first stage's, then states of clips and a call of the scorer, if it re-ranks."""
    first = encoding_programs(run)
    if not run.config.task.rerank_k:
        return first
    scorer = PairScorer(run.partition, run.mesh, frame_weights=run.config.task.frame_weights)

    def given() -> dict[str, PyTree]:
        states = states_of(run, scorer.encode_program)
        rows, everywhere = meshes.batch_sharding(run.mesh), meshes.replicated(run.mesh)
        pairs = meshes.placed(_pairs(run, scorer, states), rows)
        return {"states": meshes.placed(states, everywhere), "batch": pairs}

    return {
        **first,
        STATES: Program(scorer.encode_program, lambda: given_frames(run)),
        RERANK: Program(scorer.score_program, given),
    }


def _pairs(run: Runnable, scorer: PairScorer, states: PyTree) -> PyTree:
    """A call as `main` makes it: of as many texts as the items of one batch ask for, where all
    items ask for the same, and all texts are as long as they may be."""
    clips, task, words = eval_clips(run), run.config.task, run.config.data.words
    k = task.rerank_k
    pairs = reranking_plan.choose_pairs(np.zeros((k, clips), np.float32), k)
    ids, features = np.zeros((k, words), np.int32), np.zeros((k, run.task.embed), np.float32)
    texts = Texts(ids, np.ones(ids.shape, bool), features)
    lengths = reranking_plan.used_lengths(texts.mask)
    shape = scorer.shape(pairs, texts, states, task.rerank_rows)
    calls = reranking_plan.calls(pairs, lengths, shape, 0, clips, words)
    return scorer.group(texts, next(calls))
