"""Questions about a clip or picture, and their form in the `qa` of items and records."""

from __future__ import annotations

import collections
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.sources.files import Fields
from uniadapter_jax.data.sources.item import clean_text

QuestionId = int | str


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """One question with the answers of its annotators.

    Attributes:
      id: the data set's id, unique within the split.
      text: the question.
      answers: one per annotator, as annotated; empty if they are not public.
      question_type, answer_type: the annotated types, such as 'how many' and 'number', or ''.
      weight: weight of all its answers together in a training loss.
    """

    id: QuestionId
    text: str
    answers: tuple[str, ...] = ()
    question_type: str = ""
    answer_type: str = ""
    weight: float = 1.0

    @property
    def answer_weights(self) -> dict[str, float]:
        """{distinct answer: share of annotators x weight}, in the order of first mention (BLIP).

        An empty answer keeps its share and is left out: there is no text to train on.
        """
        counts = collections.Counter(self.answers)
        return {
            answer: self.weight * count / len(self.answers)
            for answer, count in counts.items()
            if answer
        }

    def to_json(self) -> dict[str, Any]:
        """The object that `Item.qa` holds, without fields that have their default."""
        content: dict[str, Any] = {"question_id": self.id, "question": self.text}
        if self.answers:
            content["answers"] = list(self.answers)
        for name in ("question_type", "answer_type"):
            if value := getattr(self, name):
                content[name] = value
        if self.weight != 1.0:
            content["weight"] = self.weight
        return content


def read_questions(qa: Sequence[Any], where: str) -> list[Question]:
    """The questions in the `qa` of an item or record; `where` is its name in errors and ids.

    An object written by hand may be {"question", "answer"}, with one string in place of the list
    `answers`; its id is then made of `where` and the position.
    """
    fields = Fields(f"qa of {where}")
    questions = []
    for i, record in enumerate(qa):
        text = clean_text(fields.get(record, "question", str, i))
        weight = record.get("weight", 1.0)
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 < weight <= sys.float_info.max:
            raise UserError(
                f"{fields.where}: record {i}: 'weight' should be a number above 0, is "
                f"{str(weight)[:80]!r}"
            )
        questions.append(
            Question(
                id=read_id(fields, {"question_id": f"{where}#{i}", **record}, i),
                text=text,
                answers=read_answers(
                    fields, record, "answers" if "answers" in record else "answer", i
                ),
                question_type=fields.get({"question_type": "", **record}, "question_type", str, i),
                answer_type=fields.get({"answer_type": "", **record}, "answer_type", str, i),
                weight=float(weight),
            )
        )
    return questions


def has_answer(record: Any) -> bool:
    """Whether an object of `qa`, which may be malformed, holds an answer with text in it."""
    value = record.get("answers", record.get("answer", ())) if isinstance(record, dict) else ()
    value = [value] if isinstance(value, str) else value
    return isinstance(value, list) and any(isinstance(a, str) and clean_text(a) for a in value)


def read_id(fields: Fields, record: Any, index: int, key: str = "question_id") -> QuestionId:
    """The annotated id, a whole number or a string."""
    value = fields.get(record, key, object, index)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(
            f"{fields.where}: record {index}: field {key!r} should be a whole number or a string, "
            f"is {value!r}"
        )
    return value


def read_answers(fields: Fields, record: dict[str, Any], key: str, index: int) -> tuple[str, ...]:
    """The answers in a field that holds a string or a list of strings; () if it is absent."""
    value = record.get(key, [])
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(answer, str) for answer in value):
        raise UserError(
            f"{fields.where}: record {index}: {key!r} should be a string or a list of strings"
        )
    return tuple(map(clean_text, value))
