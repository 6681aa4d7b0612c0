"""The programs of an evaluation, and what `main` gives them, as shapes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from uniadapter_jax.adapters.partition import Partition
from uniadapter_jax.common.types import PyTree
from uniadapter_jax.data.answers import answer_list
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.tasks.matching import reranking_plan
from uniadapter_jax.tasks.matching.pair_scores import PairScorer, Texts
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.tasks.retrieval.evaluator import TEXTS_PER_CLIP, make_encoders
from uniadapter_jax.tasks.vqa.evaluator import TOGETHER, make_answerers
from uniadapter_jax.weights.families import Config

FRAMES, TEXT = "encode frames", "encode text"  # to features, which are compared
STATES = "encode states"  # of clips, which texts are read with
RERANK, ANSWER = "re-rank", "answer"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Of a run whose arrays are shapes; the attributes are those of `AbstractRun`."""

    config: ConfigDict
    backbone: Config
    mesh: Mesh
    part: Partition
    task: Any

    @property
    def programs(self) -> tuple[str, ...]:
        """Names of what an evaluation compiles, in the order in which it runs."""
        if self._asks:
            return STATES, ANSWER
        return (FRAMES, TEXT, *((STATES, RERANK) if self.config.task.get("rerank_k") else ()))

    def function(self, program: str) -> Any:
        """The jitted function that `main` calls, of trainable, frozen, and what is `given`."""
        if self._asks:
            words = self.config.data.answer_words
            answerers = make_answerers(self.task, self.part, self.mesh, words)
            return answerers[self.programs.index(program)]
        if program in (FRAMES, TEXT):
            return make_encoders(self.task, self.part, self.mesh)[self.programs.index(program)]
        scorer = self._scorer
        return scorer.encode_program if program == STATES else scorer.score_program

    def given(self, program: str) -> dict[str, PyTree]:
        """What a program is given beside the weights, by kind and in order, placed on the mesh."""
        rows, everywhere = meshes.batch_sharding(self.mesh), meshes.replicated(self.mesh)
        if program == RERANK:
            return {
                "states": placed(self._states(), everywhere),
                "batch": placed(self._pairs(), rows),
            }
        if program == ANSWER:
            questions = (self._clips, TOGETHER, self.config.data.words)
            asked = {"questions": jax.ShapeDtypeStruct(questions, jnp.int32)}
            given = {"states": placed(self._states(), rows), "batch": placed(asked, rows)}
            if self.config.task.inference == "generate":
                return given
            listed = (self._answers(), self.config.data.answer_words)
            answers = jax.ShapeDtypeStruct(listed, jnp.int32)
            return {**given, "answers": placed(answers, everywhere)}
        batch: PyTree = self._frames()
        if program == TEXT:
            texts = (self._clips * TEXTS_PER_CLIP, self.config.data.words)
            batch = {"text": jax.ShapeDtypeStruct(texts, jnp.int32)}
        return {"batch": placed(batch, rows)}

    @property
    def _asks(self) -> bool:
        return get_task(self.config.task.name).asks

    @property
    def _clips(self) -> int:
        """Of a batch."""
        return meshes.round_up(self.mesh, self.config.eval.batch_size)

    @property
    def _scorer(self) -> PairScorer:
        weigh = self.config.task.frame_weights
        return PairScorer(self.part, self.mesh, frame_weights=weigh)

    def _frames(self) -> dict[str, jax.ShapeDtypeStruct]:
        clips, frames, size = self._clips, self.config.data.frames, self.backbone.image_size
        return {
            "frames": jax.ShapeDtypeStruct((clips, frames, size, size, 3), jnp.uint8),
            "frame_mask": jax.ShapeDtypeStruct((clips, frames), jnp.bool_),
        }

    def _states(self) -> PyTree:
        """What `STATES` makes of a batch."""
        function: Callable[..., PyTree] = self.function(STATES)
        return jax.eval_shape(function, self.part.trainable, self.part.frozen, self._frames())

    def _pairs(self) -> PyTree:
        """A call of `RERANK` as `main` makes it: of as many texts as the items of one batch ask
        for, where all items ask for the same, and all texts are as long as they may be."""
        k, words = self.config.task.rerank_k, self.config.data.words
        pairs = reranking_plan.choose_pairs(np.zeros((k, self._clips), np.float32), k)
        ids, features = np.zeros((k, words), np.int32), np.zeros((k, self.task.embed), np.float32)
        texts = Texts(ids, np.ones(ids.shape, bool), features)
        lengths = reranking_plan.used_lengths(texts.mask)
        rows = self.config.task.rerank_rows
        shape = self._scorer.shape(pairs, texts, self._states(), rows)
        calls = reranking_plan.calls(pairs, lengths, shape, 0, self._clips, words)
        return self._scorer.group(texts, next(calls))

    def _answers(self) -> int:
        """Of the list, where it can be read here; else as many as are ranked of it."""
        source = self.config.task.answers or self.config.data.records
        if source and os.path.exists(source):
            return len(answer_list(self.config))
        return int(self.config.task.rank_k)


def placed(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """The shapes of a tree, all with one place on the mesh."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
