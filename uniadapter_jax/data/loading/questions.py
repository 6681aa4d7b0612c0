"""Records to training batches of questions. A sample is a question; the rules are `pipeline`'s."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.answers import training_targets
from uniadapter_jax.data.loading.batches import Batch
from uniadapter_jax.data.loading.order import SampleOrder
from uniadapter_jax.data.loading.pipeline import Texts, sample_batches
from uniadapter_jax.data.records import Records
from uniadapter_jax.data.sources.question import Question


def question_steps_per_epoch(records: Records, global_batch: int) -> int:
    """Whole batches in an epoch: floor(questions / batch), at least 1 (else UserError)."""
    return _order(records, global_batch, seed=0).steps


def question_train_batches(
    records: Records,
    tokenizer: Any,
    data_config: Any,
    *,
    seed: int,
    global_batch: int,
    **placing: Any,
) -> Iterator[Batch]:
    """Questions about clips, without end; `placing` are options of `sample_batches`.

    Args:
      tokenizer: a `WordPieceTokenizer`.
      data_config: `config.data` (frames, words, answers, answer_words, augment, ...).

    Yields:
      What `sample_batches` does, and "question" int32 [b l], "answer" int32 [b p a] and
      "answer_weight" float32 [b p] as `training_targets` has them.

    Raises:
      UserError: the questions do not fill a batch, or one has no answer; it is named.
    """
    order = _order(records, global_batch, seed)
    check_answered(records)
    texts = Texts.from_config(tokenizer, data_config)
    asked = AskedQuestions(order, records, texts, data_config.answers, data_config.answer_words)
    return sample_batches(asked, data_config, **placing)


class AskedQuestions:
    """Samples that are the questions about all clips, by number, clip by clip.

    They are read from the records when needed.

    Args:
      answers, answer_words: places for the answers to a question, and tokens of each.
    """

    def __init__(
        self, order: SampleOrder, records: Records, texts: Texts, answers: int, answer_words: int
    ):
        self.order, self.records, self.texts = order, records, texts
        self.answers, self.answer_words = answers, answer_words
        counts = np.asarray(records.question_counts, np.int64)
        self.clips = np.repeat(np.arange(len(counts)), counts)
        self._first = np.cumsum(counts) - counts

    def columns(self, samples: Int[np.ndarray, " b"], rngs: Sequence[np.random.Generator]) -> Batch:
        """{"question", "answer", "answer_weight"}; nothing is drawn."""
        questions = [self._question(number) for number in samples.tolist()]
        cleaned = self.texts.rule.questions([question.text for question in questions])
        answer, weight = training_targets(
            self.texts.tokenizer, questions, self.answers, self.answer_words
        )
        return {
            "question": self.texts.encode(cleaned),
            "answer": answer,
            "answer_weight": weight,
        }

    def _question(self, number: int) -> Question:
        clip = int(self.clips[number])
        return self.records.questions[clip][number - int(self._first[clip])]


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
