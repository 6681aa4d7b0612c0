"""What would stop a run after hours of work, or make its numbers nothing: found before it begins.

Each error names the field of the config, and a way out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.ranges import INT32
from uniadapter_jax.data.loading.questions import check_answered
from uniadapter_jax.data.records import Records
from uniadapter_jax.data.sources.question import Question, QuestionId
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.tasks.vqa.metrics import unfit


def check_lengths(config: ConfigDict, model_config: Any) -> None:
    """Raises `UserError` for texts or answers that are longer than what the backbone reads.

    model_config: of the backbone; its `positions` are what its text transformer has.
    """
    data, positions = config.data, model_config.positions
    if data.words > positions:
        raise UserError(
            f"config.data.words={data.words}: texts of {data.words} tokens, but this backbone has "
            f"{positions} positions; set it to at most {positions}"
        )
    if data.preprocess == "blip" and data.max_words > positions:
        raise UserError(
            f"config.data.max_words={data.max_words}: this backbone has {positions} positions, so "
            "no text keeps so many words; set it to 0 to keep all that data.words lets through"
        )
    if get_task(config.task.name).asks and data.answer_words > positions:
        raise UserError(
            f"config.data.answer_words={data.answer_words}: the decoder has positions for "
            f"{positions} tokens; set it to at most {positions}"
        )


def check_training(config: ConfigDict, train: Records) -> None:
    """Raises `UserError` for a clip without a caption, or a question without an answer."""
    field = f"config.data.train_split={config.data.train_split!r}"
    if get_task(config.task.name).asks:
        _check_asked(field, train)
        try:
            check_answered(train)
        except UserError as error:
            raise UserError(f"{field}: {error}") from error
        return
    for name, captions in zip(train.ids, train.captions, strict=True):
        if not captions:
            raise UserError(
                f"{field}: clip {name!r} has no caption to train on, in {train.root}; "
                f"{_without_captions(train)}"
            )


def check_evaluation(config: ConfigDict, val: Records | None, test: Records) -> None:
    """Raises `UserError` for a split that cannot be measured, or not chosen by."""
    parts = {f"config.data.test_split={config.data.test_split!r}": test}
    if config.selection == "val" and val is not None:
        parts[f"config.data.val={config.data.val}"] = val
    for field, records in parts.items():
        if get_task(config.task.name).asks:
            _check_asked(field, records)
            answered = _check_references(config.task.metric, field, records)
            chooses = config.selection == ("test" if records is test else "val")
            if chooses and not answered:
                raise UserError(
                    f"config.selection={config.selection!r}: the answers of {field} are withheld, "
                    "so no checkpoint can be chosen by them; set it to 'last', or to 'val' with "
                    "config.data.val questions' clips"
                )
        elif not any(records.captions):
            raise UserError(
                f"{field}: no clip of it has a caption, in {records.root}; "
                f"{_without_captions(records)}"
            )


def check_steps(config: ConfigDict, total: int) -> None:
    """Raises `UserError` for more steps than a step's number can count."""
    if total > INT32:
        raise UserError(
            f"config.train.epochs={config.train.epochs}: that is {total:,} steps, and at most "
            f"{INT32:,} can be counted"
        )


def _without_captions(records: Records) -> str:
    if sum(records.question_counts):
        return "it has questions: they are for config.task.name='vqa'"
    return "name a split with captions, or prepare it with them"


def _check_asked(field: str, records: Records) -> None:
    if not sum(records.question_counts):
        raise UserError(
            f"{field}: no questions are there, in {records.root}; name a split with questions, or "
            "train on captions with config.task.name='retrieval' or 'matching'"
        )


def _check_references(metric: str, field: str, records: Records) -> bool:
    """Whether there are answers to measure by."""
    seen: set[QuestionId] = set()
    reason, answered = None, False
    for question in _questions(records):
        if question.id in seen:
            raise UserError(f"{field}: question {question.id!r} stands there twice: {records.root}")
        seen.add(question.id)
        answered = answered or bool(question.answers)
        reason = reason or unfit(metric, question)
    if answered and reason:  # where all are withheld, predictions are written and not measured
        raise UserError(f"config.task.metric={metric!r} does not fit {field}: {reason}")
    return answered


def _questions(records: Records) -> Iterator[Question]:
    return (question for several in records.questions for question in several)
