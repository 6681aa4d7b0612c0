"""Samples that are questions with answers: what VQA trains on, and is measured by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.answers import answer_list
from uniadapter_jax.data.loading.batches import Batch
from uniadapter_jax.data.loading.questions import (
    check_answered,
    question_steps_per_epoch,
    question_train_batches,
)
from uniadapter_jax.data.records import Records
from uniadapter_jax.data.sources.question import QuestionId
from uniadapter_jax.tasks.vqa.metrics import unfit


class QuestionSamples:
    """A sample is a question about a clip or picture; see `tasks.base.Samples`."""

    unit = "questions"
    texts: tuple[str, ...] = ("questions",)
    train_texts: tuple[str, ...] = ("answers",)  # those of other splits are compared, not read

    def steps_per_epoch(self, records: Records, config: ConfigDict) -> int:
        """Whole batches of an epoch; `UserError` where the split fills none."""
        return question_steps_per_epoch(records, config.train.batch_size)

    def train_batches(
        self, records: Records, tokenizer: Any, config: ConfigDict, **options: Any
    ) -> Iterator[Batch]:
        """Host batches without end."""
        return question_train_batches(records, tokenizer, config.data, **options)

    def batch_shapes(self, config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
        """{"question": ids "b l", "answer": ids "b p a", "answer_weight": "b p"}."""
        data, questions = config.data, config.train.batch_size
        answers = (questions, data.answers)
        return {
            "question": jax.ShapeDtypeStruct((questions, data.words), jnp.int32),
            "answer": jax.ShapeDtypeStruct((*answers, data.answer_words), jnp.int32),
            "answer_weight": jax.ShapeDtypeStruct(answers, jnp.float32),
        }

    def facts(self, config: ConfigDict, train: Records | None) -> Any:
        """The answers that are ranked: a file may change, or the training split's may."""
        ranks = config.task.inference == "rank"
        return {"answers": answer_list(config, train)} if ranks else None

    def check_lengths(self, config: ConfigDict, positions: int) -> None:
        """Raises `UserError` for answers longer than the decoder's positions."""
        length = config.data.answer_words
        if length > positions:
            raise UserError(
                f"config.data.answer_words={length}: the decoder has positions for {positions} "
                f"tokens; set it to at most {positions}"
            )

    def check_training(self, config: ConfigDict, train: Records, field: str) -> None:
        """Raises `UserError` for a split without questions, or a question without an answer."""
        _check_asked(train, field)
        try:
            check_answered(train)
        except UserError as error:
            raise UserError(f"{field}: {error}") from error

    def check_evaluation(
        self, config: ConfigDict, records: Records, field: str, *, selects: bool
    ) -> None:
        """Raises `UserError` for no questions, unfit answers, or none to select by."""
        _check_asked(records, field)
        answered = _check_references(config.task.metric, records, field)
        if selects and not answered:
            raise UserError(
                f"config.selection={config.selection!r}: the answers of {field} are withheld, "
                "so no checkpoint can be chosen by them; set it to 'last', or to 'val' with "
                "config.data.val questions' clips"
            )


def _check_asked(records: Records, field: str) -> None:
    if not sum(records.question_counts):
        raise UserError(
            f"{field}: no questions are there, in {records.root}; name a split with questions, or "
            "train on captions with config.task.name='retrieval' or 'matching'"
        )


def _check_references(metric: str, records: Records, field: str) -> bool:
    """Whether there are answers to measure by."""
    seen: set[QuestionId] = set()
    reason, answered = None, False
    for question in (question for several in records.questions for question in several):
        if question.id in seen:
            raise UserError(f"{field}: question {question.id!r} stands there twice: {records.root}")
        seen.add(question.id)
        answered = answered or bool(question.answers)
        reason = reason or unfit(metric, question)
    if answered and reason:  # where all are withheld, predictions are written and not measured
        raise UserError(f"config.task.metric={metric!r} does not fit {field}: {reason}")
    return answered
