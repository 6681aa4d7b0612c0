"""Counts the texts that are cut by `config.data.words` and the limits beside it."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from uniadapter_jax.common.ranges import at_least, check_range, check_type
from uniadapter_jax.data.records import Records
from uniadapter_jax.data.tokenizers.caption_text import TextRule
from uniadapter_jax.data.tokenizers.clip import Tokenizer

KINDS = ("captions", "questions", "answers")
_KINDS = {"words": int, "answer_words": int, "preprocess": str, "max_words": int}
_AT_ONCE = 2**16  # texts that are tokenized together


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits beyond which a run cuts texts.

    Attributes:
      words, answer_words: most tokens of a caption or question, and of an answer.
      preprocess, max_words: see `TextRule`.
    """

    words: int
    answer_words: int
    preprocess: str
    max_words: int

    @classmethod
    def from_config(cls, data: Any) -> Limits | None:
        """The limits in `config.data`, None unless it has them all (`prepare` needs none).

        Raises:
          UserError: a value is invalid; the message names it.
        """
        values = {name: data[name] for name in _KINDS if name in data}
        if len(values) < len(_KINDS):
            return None
        for name, value in values.items():
            check_type(f"config.data.{name}", value, _KINDS[name])
        for name in ("words", "answer_words"):
            check_range(f"config.data.{name}", values[name], at_least(3))
        TextRule(values["preprocess"], values["max_words"])  # checks both
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class Cut:
    """Number of texts, repeated ones included, number of those cut, and the most tokens of one."""

    texts: int
    cut: int
    longest: int


def count_cut(
    records: Records, tokenizer: Tokenizer | None, limits: Limits, kinds: Sequence[str] = KINDS
) -> dict[str, Cut]:
    """{kind: its `Cut`} of a split, for the kinds of text that it has.

    An answer counts once per question, even if several annotators gave it. Without a tokenizer
    every word counts as one token, the least that it can be.
    """
    plain = TextRule(limits.preprocess, 0)
    kept = TextRule(limits.preprocess, limits.max_words)
    texts = collections.Counter(itertools.chain.from_iterable(records.captions))
    asked: collections.Counter[str] = collections.Counter()
    answers: collections.Counter[str] = collections.Counter()
    of_questions = "questions" in kinds or "answers" in kinds
    for question in itertools.chain.from_iterable(records.questions if of_questions else ()):
        asked[question.text] += 1
        answers.update(question.answer_weights.keys())
    counts = {
        "captions": _count(texts, plain.captions, kept.captions, tokenizer, limits.words),
        "questions": _count(asked, plain.questions, kept.questions, tokenizer, limits.words),
        "answers": _count(answers, list, list, tokenizer, limits.answer_words),
    }
    return {name: cut for name, cut in counts.items() if cut.texts and name in kinds}


def cut_lines(split: str, counts: Mapping[str, Cut], limits: Limits) -> list[str]:
    """A line for people for each kind of text that has cut ones."""
    words = f"config.data.words={limits.words} tokens"
    if limits.preprocess != "none" and limits.max_words:
        words += f" or config.data.max_words={limits.max_words} words"
    most = {"answers": f"config.data.answer_words={limits.answer_words} tokens"}
    return [
        f"{split}: {cut.cut:,} of {cut.texts:,} {name} are cut at {most.get(name, words)}; the "
        f"longest has {cut.longest} tokens"
        for name, cut in counts.items()
        if cut.cut
    ]


def _count(
    texts: Mapping[str, int],
    plain: Callable[[list[str]], list[str]],
    kept: Callable[[list[str]], list[str]],
    tokenizer: Tokenizer | None,
    most: int,
) -> Cut:
    cut = longest = 0
    for chunk in _chunks(texts):
        uncut = plain(chunk)
        lengths = _lengths(uncut, tokenizer)
        fewer = np.fromiter(
            (a != b for a, b in zip(uncut, kept(chunk), strict=True)), bool, len(chunk)
        )
        times = np.fromiter((texts[text] for text in chunk), np.int64, len(chunk))
        cut += int(times[(lengths > most) | fewer].sum())
        longest = max(longest, int(lengths.max()))
    return Cut(sum(texts.values()), cut, longest)


def _lengths(texts: list[str], tokenizer: Tokenizer | None) -> np.ndarray:
    if tokenizer is not None:
        return tokenizer.lengths(texts)
    return np.fromiter((len(text.split()) + 2 for text in texts), np.int64, len(texts))


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while chunk := list(itertools.islice(iterator, _AT_ONCE)):
        yield chunk
