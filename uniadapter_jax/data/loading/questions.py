"""Records to training batches of questions. A sample is a question; the rules are `pipeline`'s."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.answers import training_targets
from uniadapter_jax.data.loading.batches import Batch, chosen_rows, decoding_threads, endless
from uniadapter_jax.data.loading.frames import FrameReader
from uniadapter_jax.data.loading.order import SampleOrder
from uniadapter_jax.data.records import Records
from uniadapter_jax.data.sources.question import Question
from uniadapter_jax.data.tokenizers.caption_text import TextRule


def question_steps_per_epoch(records: Records, global_batch: int) -> int:
    """Whole batches in an epoch: floor(questions / batch), at least 1 (else UserError)."""
    return _order(records, global_batch, seed=0).steps


def question_train_batches(
    records: Records,
    tokenizer: Any,
    data_config: Any,
    *,
    image_size: int,
    global_batch: int,
    seed: int,
    start_step: int = 0,
    rows: Int[np.ndarray, " b"] | None = None,
) -> Iterator[Batch]:
    """These rows of global batch start_step, start_step + 1, ... without end.

    Args:
      tokenizer: a `WordPieceTokenizer`.
      data_config: `config.data` (frames, words, answers, answer_words, augment, ...).
      rows: of each global batch those to make, in this order; None: all.

    Yields:
      "frames" uint8 [b f H W 3], "frame_mask" bool [b f], "question" int32 [b l],
      "answer" int32 [b p a] and "answer_weight" float32 [b p] as `training_targets` has them,
      "item" int32 [b] (clip index in `records`).

    Raises:
      UserError: the questions do not fill a batch, or one has no answer; it is named.
    """
    order = _order(records, global_batch, seed)
    check_answered(records)
    loader = QuestionTrainLoader(
        reader=FrameReader.from_config(
            records, data_config, image_size, decoding_threads(data_config)
        ),
        rows=chosen_rows(global_batch, rows),
        asked=AskedQuestions(records),
        texts=_Texts.from_config(tokenizer, data_config),
        order=order,
        answers=data_config.answers,
        answer_words=data_config.answer_words,
    )
    return endless(loader, data_config, start_step)


class AskedQuestions:
    """The questions about all clips, by number, clip by clip; read from the records when needed."""

    def __init__(self, records: Records):
        self._records = records
        counts = np.asarray(records.question_counts, np.int64)
        self.clips = np.repeat(np.arange(len(counts)), counts)  # of each question
        self._first = np.cumsum(counts) - counts

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, number: int) -> Question:
        clip = int(self.clips[number])
        return self._records.questions[clip][number - int(self._first[clip])]


@dataclasses.dataclass(frozen=True)
class _Texts:
    """How questions become tokens."""

    tokenizer: Any
    words: int
    rule: TextRule

    @classmethod
    def from_config(cls, tokenizer: Any, data_config: Any) -> _Texts:
        rule = TextRule(data_config.preprocess, data_config.max_words)
        return cls(tokenizer, data_config.words, rule)

    def encode(self, texts: list[str]) -> np.ndarray:
        cleaned = self.rule.questions(texts)
        return np.asarray(self.tokenizer.encode(cleaned, self.words), np.int32)


@dataclasses.dataclass
class QuestionTrainLoader:
    """Step -> the rows of the training batch."""

    reader: FrameReader
    rows: Int[np.ndarray, " b"]
    asked: AskedQuestions
    texts: _Texts
    order: SampleOrder
    answers: int
    answer_words: int

    def __call__(self, step: int) -> Batch:
        numbers = self.order.rows(int(step))[self.rows]
        items = self.asked.clips[numbers]
        questions = [self.asked[number] for number in numbers.tolist()]
        batch = self.reader.empty(len(self.rows))
        rngs = [self.order.row_rng(int(step), row) for row in self.rows.tolist()]
        self.reader.fill(batch, items.tolist(), rngs)
        batch["question"] = self.texts.encode([question.text for question in questions])
        batch["answer"], batch["answer_weight"] = training_targets(
            self.texts.tokenizer, questions, self.answers, self.answer_words
        )
        batch["item"] = items.astype(np.int32)
        return batch


def _order(records: Records, global_batch: int, seed: int) -> SampleOrder:
    """Of the questions: each is a clip of its own with one caption."""
    total = sum(records.question_counts)
    if not total:
        raise UserError(f"{records.root}: split {records.split!r} has no questions")
    return SampleOrder([1] * total, "all", global_batch, seed)


def check_answered(records: Records) -> None:
    """Raises `UserError` that names the first question without an answer."""
    for i, unanswered in enumerate(records.unanswered_counts):
        if unanswered:
            question = next(q for q in records.questions[i] if not q.answer_weights)
            raise UserError(
                f"{records.index_path(i)}: question {question.id!r} about {records.ids[i]!r} "
                f"({question.text!r}) has no answer to train on; "
                f"{sum(records.unanswered_counts)} such questions in {records.split!r}. Train on "
                "a split with answers, or leave them out of the annotations"
            )
