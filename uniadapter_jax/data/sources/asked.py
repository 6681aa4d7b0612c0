"""Gathers a data set's questions, in the order of its files, into an item per clip or picture."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.sources.item import Item, Source
from uniadapter_jax.data.sources.question import Question, QuestionId


class Asked(NamedTuple):
    """A question about `medium`, the name of a clip or picture, from record number `record`."""

    record: int
    medium: str
    question: Question


class Gathered:
    """The items of all splits, and the questions that were left out.

    A question without text, or without an answer in a split that has answers, is left out.
    """

    def __init__(self, root: str, place: Callable[[Iterable[Item]], tuple[Item, ...]]):
        """`place` replaces the names of media in items by the paths of files."""
        self._root = root
        self._place = place
        self._items: list[Item] = []
        self._left_out: list[tuple[Item, str, str]] = []  # an item, reason and detail

    def add(self, path: str, split: str, asked: Iterable[Asked], answered: bool = True) -> None:
        """Adds the questions of file `path`; `answered` is false if its answers are not public.

        Raises:
          UserError: two questions have one id, or one has no clip or picture.
        """
        questions: dict[str, list[Question]] = {}
        first: dict[QuestionId, int] = {}
        for record, medium, question in asked:
            place = f"{os.path.join(self._root, path)}: record {record}"
            if (taken := first.setdefault(question.id, record)) != record:
                raise UserError(f"{place}: question {question.id!r} was asked by record {taken}")
            if not os.path.basename(medium):
                raise UserError(f"{place}: question {question.id!r} names no picture or clip")
            if not question.text:
                self._leave_out(split, medium, "no_question", question)
            elif answered and not any(question.answers):
                self._leave_out(split, medium, "no_answer", question)
            else:
                questions.setdefault(medium, []).append(question)
        self._items += [
            Item(_id(medium), medium, split, qa=tuple(q.to_json() for q in several))
            for medium, several in questions.items()
        ]

    def source(self, protocol: str) -> Source:
        """The items as a source; the numbers of questions left out are added to `protocol`."""
        counts = collections.Counter(reason for _, reason, _ in self._left_out)
        numbers = (f"{n} questions left out: {reason}" for reason, n in sorted(counts.items()))
        words = "; ".join([protocol, *numbers])
        placed = self._place([*self._items, *(item for item, _, _ in self._left_out)])
        left_out = tuple(
            {"id": item.id, "split": item.split, "path": item.path, "reason": why, "detail": detail}
            for item, (_, why, detail) in zip(
                placed[len(self._items) :], self._left_out, strict=True
            )
        )
        return Source(words, self._root, placed[: len(self._items)], left_out)

    def _leave_out(self, split: str, medium: str, reason: str, question: Question) -> None:
        item = Item(_id(medium), medium, split)
        self._left_out.append((item, reason, f"question {question.id}"))


def _id(medium: str) -> str:
    return os.path.splitext(os.path.basename(medium))[0]
