"""Programs of an evaluation that answers questions."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp

from uniadapter_jax.common.types import PyTree
from uniadapter_jax.data.answers import answer_list
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.tasks.base import Program, Runnable
from uniadapter_jax.tasks.programs import STATES, eval_clips, given_frames, states_of
from uniadapter_jax.tasks.vqa.evaluator import TOGETHER, make_answerers

ANSWER = "answer"


def vqa_programs(run: Runnable) -> dict[str, Program]:
    """States of clips, and answers to questions about them."""
    data = run.config.data
    encode, answer = make_answerers(run.task, run.partition, run.mesh, data.answer_words)

    def given() -> dict[str, PyTree]:
        rows = meshes.batch_sharding(run.mesh)
        ids = (eval_clips(run), TOGETHER, data.words)
        questions = {"questions": jax.ShapeDtypeStruct(ids, jnp.int32)}
        states = meshes.placed(states_of(run, encode), rows)
        batch = {"states": states, "batch": meshes.placed(questions, rows)}
        if run.config.task.inference == "generate":
            return batch
        listed = jax.ShapeDtypeStruct((_answers(run), data.answer_words), jnp.int32)
        return {**batch, "answers": meshes.placed(listed, meshes.replicated(run.mesh))}

    return {
        STATES: Program(encode, lambda: given_frames(run)),
        ANSWER: Program(answer, given),
    }


def _answers(run: Runnable) -> int:
    """The number of listed answers where the list can be read here, else of those ranked."""
    source = run.config.task.answers or run.config.data.records
    if source and os.path.exists(source):
        return len(answer_list(run.config))
    return int(run.config.task.rank_k)
