"""How many texts are longer than what is read of them: `config.data.words` and its neighbours."""

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
    """What a run reads of a text.

    Attributes:
      words, answer_words: tokens of a caption or question, and of an answer.
      preprocess, max_words: see `TextRule`.
    """

    words: int
    answer_words: int
    preprocess: str
    max_words: int

    @classmethod
    def from_config(cls, data: Any) -> Limits | None:
        """Those of `config.data`, None unless it has them all (`prepare` needs none).

        Raises:
          UserError: a value that cannot be; it is named.
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
    """Of `texts`, each as often as it comes, `cut` are cut; `longest` is in tokens."""

    texts: int
    cut: int
    longest: int


def count_cut(
    records: Records, tokenizer: Tokenizer | None, limits: Limits, kinds: Sequence[str] = KINDS
) -> dict[str, Cut]:
    """{kind: its `Cut`} of a split, as far as it has such texts.

    A question's answers count once each, whoever gave them. Without a tokenizer every word counts
    as one token, which is the least that it can be.
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
    found = {
        "captions": _count(texts, plain.captions, kept.captions, tokenizer, limits.words),
        "questions": _count(asked, plain.questions, kept.questions, tokenizer, limits.words),
        "answers": _count(answers, list, list, tokenizer, limits.answer_words),
    }
    return {name: cut for name, cut in found.items() if cut.texts and name in kinds}


def cut_lines(split: str, counts: Mapping[str, Cut], limits: Limits) -> list[str]:
    """A line for people for each kind of text of which some are cut."""
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
    for part in _parts(texts):
        whole = plain(part)
        lengths = _lengths(whole, tokenizer)
        fewer = np.fromiter(
            (a != b for a, b in zip(whole, kept(part), strict=True)), bool, len(part)
        )
        times = np.fromiter((texts[text] for text in part), np.int64, len(part))
        cut += int(times[(lengths > most) | fewer].sum())
        longest = max(longest, int(lengths.max()))
    return Cut(sum(texts.values()), cut, longest)


def _lengths(texts: list[str], tokenizer: Tokenizer | None) -> np.ndarray:
    if tokenizer is not None:
        return tokenizer.lengths(texts)
    return np.fromiter((len(text.split()) + 2 for text in texts), np.int64, len(texts))


def _parts(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while part := list(itertools.islice(iterator, _AT_ONCE)):
        yield part
