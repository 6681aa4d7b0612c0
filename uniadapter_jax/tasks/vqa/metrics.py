"""Accuracy of answers: VQAv2 as its server scores it, exact match for one reference.

docs/protocols.md explains both.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import write_whole
from uniadapter_jax.data.sources.question import Question, QuestionId
from uniadapter_jax.tasks.vqa.answers import normalize_answer, strip_answer

AGREEING = 3  # annotators that make an answer fully right
FEWEST_ANNOTATORS = 1 + AGREEING  # with fewer, no answer could be


def answer_accuracy(prediction: str, references: Sequence[str]) -> float:
    """In [0, 1]: the mean over annotators of min(1, those of the others who agree / 3).

    Of ten references 0, 1, 2, 3 and more agreeing give 0, .3, .6, .9 and 1. Where all references
    are the same string, they are compared as they are: "Yes" is not "yes" then.
    """
    prediction, references = strip_answer(prediction), [strip_answer(r) for r in references]
    if len(set(references)) > 1:
        prediction = normalize_answer(prediction)
        references = [normalize_answer(reference) for reference in references]
    agree = [reference == prediction for reference in references]
    others = (sum(agree) - own for own in agree)
    return sum(min(1.0, count / AGREEING) for count in others) / len(agree)


def vqa_accuracy(
    predictions: Mapping[QuestionId, str], questions: Sequence[Question]
) -> dict[str, Any]:
    """{'overall': percent, 'per_question_type': {name: percent}, 'per_answer_type': ...}.

    Means over questions, rounded to 2 decimals as the server does. A type that the annotations do
    not give is in no group.

    Raises:
      UserError: a question has no prediction, a prediction no question, or a question fewer than
        4 annotators (Visual Genome has 1, the test splits none).
    """
    scores = question_accuracies("vqa", predictions, questions)
    return {
        "overall": round(_percent(scores), 2),
        "per_question_type": _per_type(scores, [q.question_type for q in questions], 2),
        "per_answer_type": _per_type(scores, [q.answer_type for q in questions], 2),
    }


def exact_match_accuracy(
    predictions: Mapping[QuestionId, str], questions: Sequence[Question]
) -> dict[str, Any]:
    """{'overall': percent, 'per_question_type': {name: percent}} of equal strings (MSRVTT-QA).

    Nothing is normalised, and every question counts, also one whose answer no training question
    has. Of answers that a decoder writes, the references are to be given as it would write them.

    Raises:
      UserError: a question has no prediction, a prediction no question, or a question has not
        exactly one answer.
    """
    scores = question_accuracies("exact", predictions, questions)
    return {
        "overall": _percent(scores),
        "per_question_type": _per_type(scores, [q.question_type for q in questions]),
    }


def question_accuracies(
    metric: str, predictions: Mapping[QuestionId, str], questions: Sequence[Question]
) -> list[float]:
    """The accuracy of each question, in [0, 1], in their order.

    Raises:
      UserError: as `vqa_accuracy` ('vqa') and `exact_match_accuracy` ('exact') say.
    """
    _check_ids(predictions, questions)
    scores = []
    for question in questions:
        if reason := unfit(metric, question):
            raise UserError(reason)
        scores.append(_ACCURACY[metric](predictions[question.id], question.answers))
    return scores


def _equal(prediction: str, references: Sequence[str]) -> float:
    return float(prediction == references[0])


_ACCURACY = {"vqa": answer_accuracy, "exact": _equal}


def unfit(metric: str, question: Question) -> str | None:
    """Why the metric cannot measure a question by the answers that it has, and what can."""
    count = len(question.answers)
    if metric == "vqa" and count < FEWEST_ANNOTATORS:
        way = "; config.task.metric='exact' is for one" if count == 1 else ""
        return (
            f"question {question.id!r} has {count} answers; VQA accuracy needs those of at least "
            f"{FEWEST_ANNOTATORS} annotators, as in VQAv2's train and val{way}"
        )
    if metric == "exact" and count != 1:
        way = "; config.task.metric='vqa' is for several" if count >= FEWEST_ANNOTATORS else ""
        return f"question {question.id!r} has {count} answers; exact match needs one{way}"
    return None


def count_unreachable(
    metric: str,
    questions: Sequence[Question],
    *,
    written: Mapping[str, str | None] | None = None,
    listed: Sequence[str] = (),
) -> int:
    """Questions of which no answer that can be predicted is right.

    Args:
      written: how a decoder writes each reference, None if it cannot; see `written_answers`.
      listed: the candidates, where answers are not written but chosen.
    """
    literal = set(listed) if metric == "exact" else set(map(strip_answer, listed))
    normalized = set(map(normalize_answer, listed))

    def reachable(reference: str, strict: bool) -> bool:
        if written is None:
            same = reference if metric == "exact" else strip_answer(reference)
            return same in literal if strict else normalize_answer(reference) in normalized
        said = written[reference]
        if said is None or metric == "exact":
            return said is not None
        form = strip_answer if strict else normalize_answer
        return form(said) == form(reference)

    def lost(question: Question) -> bool:
        references = set(question.answers)
        strict = metric == "exact" or len(set(map(strip_answer, references))) == 1
        return bool(references) and not any(reachable(r, strict) for r in references)

    return sum(map(lost, questions))


def accuracy_groups(
    metric: str, predictions: Mapping[QuestionId, str], questions: Sequence[Question]
) -> dict[str, dict[str, float]]:
    """{"accuracy": {"overall": percent}, "per_answer_type": {name: percent}, ...}.

    By `vqa_accuracy` ('vqa') or `exact_match_accuracy` ('exact'). A group that has nothing in it,
    such as the types of a set without types, is left out; where all answers are withheld, every one
    is.
    """
    if not any(question.answers for question in questions):
        return {}
    measure = {"vqa": vqa_accuracy, "exact": exact_match_accuracy}[metric]
    found = measure(predictions, questions)
    groups = {"accuracy": {"overall": found.pop("overall")}, **found}
    return {name: values for name, values in groups.items() if values}


def write_results(
    path: pathlib.Path, predictions: Mapping[QuestionId, str], questions: Sequence[Question]
) -> None:
    """The file that VQAv2's server takes: [{"question_id", "answer"}] in the order of `questions`.

    Raises:
      UserError: predictions and questions differ, an id is not a number, or the disk says no.
    """
    _check_ids(predictions, questions)
    if wrong := [question.id for question in questions if not isinstance(question.id, int)]:
        raise UserError(f"{path}: the server knows questions by number, not by {wrong[0]!r}")
    results = [{"question_id": q.id, "answer": predictions[q.id]} for q in questions]
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(results))


def _check_ids(predictions: Mapping[QuestionId, str], questions: Sequence[Question]) -> None:
    if not questions:
        raise UserError("no questions, so no accuracy; is the split empty?")
    known = {question.id for question in questions}
    for what, ids in (
        ("questions have no prediction", known - predictions.keys()),
        ("predictions answer no question of the split", predictions.keys() - known),
    ):
        if ids:
            shown = ", ".join(sorted(map(repr, ids))[:3])
            raise UserError(f"{len(ids)} {what}, such as {shown}; all questions are scored")


def _per_type(
    scores: Sequence[float], types: Sequence[str], decimals: int | None = None
) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for score, name in zip(scores, types, strict=True):
        if name:
            groups.setdefault(name, []).append(score)
    means = {name: _percent(groups[name]) for name in sorted(groups)}
    return means if decimals is None else {n: round(mean, decimals) for n, mean in means.items()}


def _percent(scores: Sequence[float]) -> float:
    return 100 * sum(scores) / len(scores)
