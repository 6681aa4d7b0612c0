"""Answers of a question set: their list, their tokens, and the answers to train on."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError
from uniadapter_jax.data.records import Records, open_records
from uniadapter_jax.data.sources.item import clean_text
from uniadapter_jax.data.sources.question import Question
from uniadapter_jax.data.sources.text_files import read_json
from uniadapter_jax.data.tokenizers.clip import PAD_ID

SHOWN = 10  # most entries of a list that an error shows


def read_answer_list(path: str) -> list[str]:
    """The candidates of rank mode: a JSON list of strings, such as BLIP's `answer_list.json`.

    Raises:
      UserError: there is no such list, or it has empty or repeated entries, which are named.
    """
    try:
        content = read_json(path)
    except FileError as error:
        raise UserError(f"config.task.answers={error}") from error
    if not isinstance(content, list) or not content:
        raise UserError(f"config.task.answers={path}: expected a list of strings")
    first: dict[str, int] = {}
    problems = []
    for i, answer in enumerate(content):
        if not isinstance(answer, str):
            problems.append(f"entry {i} is no string: {answer!r}")
        elif not clean_text(answer):
            problems.append(f"entry {i} is empty")
        elif (taken := first.setdefault(clean_text(answer), i)) != i:
            problems.append(f"entry {i} repeats entry {taken}: {answer!r}")
    if problems:
        raise UserError("\n  ".join([f"config.task.answers={path}:", *_shown(problems)]))
    return list(first)


def training_answers(records: Records) -> list[str]:
    """The distinct answers of a split, the most frequent first, ties by first mention."""
    counts = collections.Counter(
        answer
        for questions in records.questions
        for question in questions
        for answer in question.answers
        if answer
    )
    if not counts:
        raise UserError(f"{records.root}: split {records.split!r} has no answers")
    return [answer for answer, _ in counts.most_common()]


def answer_list(config: Any, train: Records | None = None) -> list[str]:
    """The answers that rank mode chooses from; `train`: the training split, if it is open.

    Raises:
      UserError: the list is missing or malformed, or there are no records.
    """
    if path := config.task.answers:
        return read_answer_list(path)
    data = config.data
    return training_answers(train or open_records(data.records, data.train_split))


def check_answers(
    tokenizer: Any, answers: Sequence[str], answer_words: int
) -> Int[np.ndarray, "n a"]:
    """The tokens of a list of answers, as the decoder reads them.

    Raises:
      UserError: an answer has more than `answer_words` tokens, [DEC] and [SEP] included, or none
        besides these.
    """
    ids, long = encode_answers(tokenizer, answers, answer_words)
    problems = [f"{answers[i]!r} is longer" for i in _where(long)]
    if problems:
        raise UserError(
            "\n  ".join(
                [
                    f"{len(problems)} of {len(answers)} answers do not fit into config.data."
                    f"answer_words={answer_words} tokens, [DEC] and [SEP] included; raise it or "
                    "leave them out:",
                    *_shown(problems),
                ]
            )
        )
    if empty := [f"{answers[i]!r}" for i in _where(ids[:, 1] == tokenizer.eos_id)]:
        raise UserError(f"answers without a token: {', '.join(empty[:SHOWN])}")
    return ids


def encode_answers(
    tokenizer: Any, answers: Sequence[str], answer_words: int
) -> tuple[Int[np.ndarray, "n a"], Bool[np.ndarray, "n"]]:
    """(tokens, whether each answer was too long): [DEC], the answer, [SEP], then padding.

    An answer that is too long is cut, and still ends with [SEP].
    """
    ids = np.asarray(tokenizer.encode(answers, answer_words + 1), np.int32)
    long = ids[:, answer_words] != PAD_ID
    ids = ids[:, :answer_words].copy()
    ids[long, -1] = tokenizer.eos_id
    ids[:, 0] = tokenizer.dec_id
    return ids, long


def written_answers(
    tokenizer: Any, answers: Iterable[str], answer_words: int
) -> dict[str, str | None]:
    """{answer: the text that a decoder writes for it, None if it cannot}, of distinct answers.

    The decoder writes the text of the tokenizer's ids, for example in lower case, without accents,
    with blanks around a hyphen. It cannot write an answer that has an unknown word, no word, or
    more than `answer_words` tokens with [DEC] (an answer of just that many has no [SEP]).
    """
    texts = list(dict.fromkeys(answers))
    ids = tokenizer.ids(texts)
    written = tokenizer.decode(ids)
    return {
        text: out if row and len(row) < answer_words and tokenizer.unknown_id not in row else None
        for text, row, out in zip(texts, ids, written, strict=True)
    }


def training_targets(
    tokenizer: Any, questions: Sequence[Question], answers: int, answer_words: int
) -> tuple[Int[np.ndarray, "b p a"], Float[np.ndarray, "b p"]]:
    """(tokens, weights) of the answers to train on.

    Each question keeps its `answers` heaviest distinct answers (ties go to the first mentioned);
    their weights are not rescaled. If it has fewer, the weight of the missing ones is 0 and their
    tokens are padding. An answer longer than `answer_words` is cut; the first one is logged.
    """
    chosen = [_heaviest(question, answers) for question in questions]
    flat = [answer for several in chosen for answer in several]
    encoded, long = encode_answers(tokenizer, flat, answer_words)
    for i in _where(long):
        message = "the answer %r is longer than config.data.answer_words=%d tokens and is cut"
        logging.log_first_n(logging.WARNING, message, 1, flat[i], answer_words)
    ids = np.full((len(questions), answers, answer_words), PAD_ID, np.int32)
    weights = np.zeros((len(questions), answers), np.float32)
    place = 0
    for row, several in enumerate(chosen):
        ids[row, : len(several)] = encoded[place : place + len(several)]
        weights[row, : len(several)] = list(several.values())
        place += len(several)
    return ids, weights


def _heaviest(question: Question, most: int) -> dict[str, float]:
    weights = question.answer_weights
    return dict(sorted(weights.items(), key=lambda entry: -entry[1])[:most])


def _where(chosen: Bool[np.ndarray, "n"]) -> list[int]:
    return np.flatnonzero(chosen).tolist()


def _shown(problems: Sequence[str]) -> list[str]:
    more = len(problems) - SHOWN
    return [*problems[:SHOWN], *([f"and {more} more"] if more > 0 else [])]
