"""Answers to all questions of a split: accuracy, the server's file, and the best few with scores.

A clip is encoded once, whatever is asked about it; questions about it are read together. Of equal
questions about clips whose stored frames are equal one is answered, for all.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import Mesh

from uniadapter_jax.adapters.partition import Partition
from uniadapter_jax.common.distinct import distinct, distinct_rows
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import write_whole
from uniadapter_jax.common.types import Array, Int, PyTree
from uniadapter_jax.data.answers import answer_list, check_answers, written_answers
from uniadapter_jax.data.records import Records
from uniadapter_jax.data.sources.question import Question, QuestionId
from uniadapter_jax.data.tokenizers.caption_text import TextRule
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.parallel.calls import fetched
from uniadapter_jax.parallel.preemption import pass_by
from uniadapter_jax.parallel.progress import Progress, say
from uniadapter_jax.tasks.base import Batch, Subject
from uniadapter_jax.tasks.clip_states import ClipStates
from uniadapter_jax.tasks.vqa import metrics as vqa_metrics
from uniadapter_jax.tasks.vqa.task import Vqa

# Questions about one clip that are read at once; a clip with fewer leaves places empty.
TOGETHER = 4


class Answer(NamedTuple):
    """One of a question's best; the score is minus the loss (rank) or log p per word (generate)."""

    text: str
    score: float


def make_answerers(
    task: Vqa, part: Partition, mesh: Mesh, length: int
) -> tuple[Callable[..., ClipStates], Callable[..., tuple[Array, Array]]]:
    """Compiled (encode, answer).

    encode: (trainable, frozen, batch) -> states of clips, which stay cut over the devices.
    answer: (trainable, frozen, states, {"questions": "m p l"}, candidates) -> what `Vqa.rank` gives
      of candidates; without any what `Vqa.generate` does, texts of at most `length` tokens. Whole
      everywhere.
    """

    def encode(trainable: PyTree, frozen: PyTree, batch: Batch) -> ClipStates:
        return task.encode_clips(part.merge(trainable, frozen), batch)

    def answer(
        trainable: PyTree,
        frozen: PyTree,
        clips: ClipStates,
        batch: Batch,
        candidates: Array | None = None,
    ) -> tuple[Array, Array]:
        model, ids = part.merge(trainable, frozen), batch["questions"]
        if candidates is None:
            return task.generate(model, clips, ids, length)
        return task.rank(model, clips, ids, candidates)

    rows, everywhere = meshes.batch_sharding(mesh), meshes.replicated(mesh)
    return jax.jit(encode, out_shardings=rows), jax.jit(answer, out_shardings=everywhere)


class Asked(NamedTuple):
    """Questions that are the same ids, about equal clips."""

    ids: Int[np.ndarray, " l"]
    questions: list[Question]


class VqaEvaluator:
    """Answers of the `vqa` task; compiled once for all calls.

    Args:
      workdir: where `answers-SPLIT.jsonl` and `predictions-SPLIT.json` go; None writes nothing.

    Raises:
      UserError: the list of answers is empty, or holds one that the decoder cannot say.
    """

    def __init__(self, subject: Subject, workdir: pathlib.Path | None = None):
        self.e = subject
        self.workdir = workdir
        self.task = cast(Vqa, subject.task)
        self.answers: list[str] = []
        self.candidates: Array | None = None
        if self.task.options.inference == "rank":
            self._list_answers()
        words = self.e.config.data.answer_words
        programs = make_answerers(self.task, self.e.partition, self.e.mesh, words)
        self._encode, self._answer = programs
        self._say_unreachable()

    def _say_unreachable(self) -> None:
        """Says before training of how many questions no answer that may come can be right."""
        data = self.e.data.named()
        data.pop("train", None)
        for name, records in data.items() if jax.process_index() == 0 else ():
            questions = _questions(records)
            options = self._written(questions) | {"listed": self.answers}
            lost = vqa_metrics.count_unreachable(self.task.options.metric, questions, **options)
            if lost:
                way = "in the list" if self.answers else "that this vocabulary can write"
                say(f"{name}: {lost:,} of {len(questions):,} questions have no answer {way}")

    def _written(self, questions: list[Question]) -> dict[str, Any]:
        """{"written": how the decoder would write the references}, if it writes."""
        if self.task.options.inference == "rank":
            return {}
        answers = (answer for question in questions for answer in question.answers)
        words = self.e.config.data.answer_words
        return {"written": written_answers(self.e.tokenizer, answers, words)}

    def _compared(self, questions: list[Question]) -> list[Question]:
        """The questions with references as predictions may be.

        What the decoder writes has gone through the tokenizer; for `exact` so do references. Those
        that it cannot write stay as they are, and are missed.
        """
        options = self.task.options
        if options.metric != "exact" or options.inference == "rank":
            return questions
        written = self._written(questions)["written"]
        return [
            dataclasses.replace(q, answers=tuple(written[a] or a for a in q.answers))
            for q in questions
        ]

    def _list_answers(self) -> None:
        self.answers = answer_list(self.e.config, self.e.data.train)
        words = self.e.config.data.answer_words
        ids = check_answers(self.e.tokenizer, self.answers, words)
        longest = int((ids != self.task.pad_id).sum(axis=1).max())
        self.candidates = meshes.put_replicated(ids[:, :longest], self.e.mesh)
        count, k = len(self.answers), self.task.options.rank_k
        kept = "all are ranked" if k >= count else f"the likeliest {k} of a question are ranked"
        say(f"{count} answers of up to {longest} tokens; {kept}")

    def __call__(self, trainable: PyTree, records: Records) -> dict[str, Any]:
        """{"metrics", "accuracies", "question_ids", "predictions", "questions", "clips"}.

        metrics: {"accuracy": {"overall": percent}, "per_answer_type": {name: percent},
          "per_question_type": ...}; {} for a split whose answers are withheld.
        accuracies: of each question, in [0, 1]; [] like that.
        predictions: the name of the file, or [{"question_id", "answer"}] without a workdir.

        Raises:
          UserError: a question is asked twice by id, has too few answers for the metric, or its
            scores are not numbers.
        """
        questions = _questions(records)
        if not questions:
            raise UserError(f"{records.root}: split {records.split!r} has no questions")
        best: dict[QuestionId, list[Answer]] = {}
        for question, answers in self._best(trainable, records, len(questions)):
            if question.id in best:
                raise UserError(f"{records.root}: question {question.id!r} stands there twice")
            best[question.id] = answers
        predictions = {name: answers[0].text for name, answers in best.items()}
        metric, compared = self.task.options.metric, self._compared(questions)
        metrics = vqa_metrics.accuracy_groups(metric, predictions, compared)
        every = vqa_metrics.question_accuracies(metric, predictions, compared) if metrics else []
        return {
            "metrics": metrics,
            "accuracies": every,
            "question_ids": [question.id for question in questions],
            "predictions": self._keep(records.split, questions, best, predictions),
            "questions": len(questions),
            "clips": len(records),
        }

    def _best(
        self, trainable: PyTree, records: Records, total: int
    ) -> Iterator[tuple[Question, list[Answer]]]:
        """Every question once, those of clips with many questions first."""
        same = distinct(records.contents)
        copies = np.split(np.argsort(same.index, kind="stable"), np.cumsum(same.counts)[:-1])
        counts = np.zeros(len(same.first), np.int64)
        np.add.at(counts, same.index, records.question_counts)
        order = np.argsort(-counts, kind="stable")  # clips of one batch have about as many
        order = order[: np.count_nonzero(counts)]
        view = records.subset(same.first[order])
        size, together = self.e.eval_batch, min(TOGETHER, int(counts.max()))
        starts = range(0, len(order), size)
        batches = (
            [self._asked(records, copies[place]) for place in order[start : start + size]]
            for start in starts
        )
        progress = Progress("answering", total, "questions")
        for asked, (chosen, scores) in fetched(self._calls(trainable, view, batches, together)):
            yield from self._texts(asked, together, chosen, scores)
            pass_by()
            progress.advance(sum(len(one.questions) for several in asked for one in several))

    def _calls(
        self,
        trainable: PyTree,
        records: Records,
        batches: Iterable[list[list[Asked]]],
        together: int,
    ) -> Iterator[tuple[list[list[Asked]], tuple[Array, Array]]]:
        """At most `together` questions about each clip of a batch, and what is on its way."""
        frozen, size = self.e.partition.frozen, self.e.eval_batch
        rows = meshes.rows_of_process(self.e.mesh, size)
        for host, of_clips in zip(self.e.clip_batches(records), batches, strict=True):
            frames = {name: host[name] for name in ("frames", "frame_mask")}
            clips = self._encode(trainable, frozen, meshes.put_batch(frames, self.e.mesh, size))
            asked = of_clips + [[]] * (size - len(of_clips))
            for start in range(0, max(map(len, asked)), together):
                now = [several[start : start + together] for several in asked]
                ids = self._ids([now[row] for row in rows], together)
                batch = meshes.put_batch({"questions": ids}, self.e.mesh, size)
                yield now, self._answer(trainable, frozen, clips, batch, self.candidates)

    def _asked(self, records: Records, clips: Iterable[int]) -> list[Asked]:
        """All that is asked about clips that are equal."""
        questions = [question for i in clips for question in records.questions[i]]
        ids = self._encode_questions([question.text for question in questions])
        same = distinct_rows(ids)
        asked = [Asked(row, []) for row in same.take(ids)]
        for question, place in zip(questions, same.index, strict=True):
            asked[place].questions.append(question)
        return asked

    def _encode_questions(self, texts: list[str]) -> np.ndarray:
        data = self.e.config.data
        rule = TextRule(data.preprocess, data.max_words)
        return self.e.tokenizer.encode(rule.questions(texts), data.words)

    def _ids(self, asked: list[list[Asked]], together: int) -> np.ndarray:
        """Ids "m p l"; empty questions fill the places that are left."""
        empty = self.e.tokenizer.encode([""], self.e.config.data.words)
        placed = np.tile(empty[:, None], (len(asked), together, 1))
        for clip, several in enumerate(asked):
            for place, one in enumerate(several):
                placed[clip, place] = one.ids
        return placed

    def _texts(
        self, asked: list[list[Asked]], together: int, chosen: np.ndarray, scores: np.ndarray
    ) -> Iterator[tuple[Question, list[Answer]]]:
        for clip, several in enumerate(asked):
            for place, (_, questions) in enumerate(several):
                row = clip * together + place
                if np.isnan(scores[row]).any():
                    raise UserError(
                        f"the answers' scores of question {questions[0].id!r} are not numbers. "
                        "Look for NaN in the weights"
                    )
                complete = np.isfinite(scores[row])  # fewer texts than beams
                texts = self._said(chosen[row][complete])
                of_question = scores[row][complete].tolist()
                answers = [Answer(*pair) for pair in zip(texts, of_question, strict=True)]
                for question in questions:
                    yield question, answers

    def _said(self, chosen: np.ndarray) -> list[str]:
        """Places in the list, or rows of ids, as texts."""
        if self.candidates is None:
            return cast(Any, self.e.tokenizer).decode(chosen)
        return [self.answers[i] for i in chosen]

    def _keep(
        self,
        split: str,
        questions: list[Question],
        best: dict[QuestionId, list[Answer]],
        predictions: dict[QuestionId, str],
    ) -> Any:
        if self.workdir is None:
            return [{"question_id": q.id, "answer": predictions[q.id]} for q in questions]
        name = split.replace(",", "+")
        path = self.workdir / f"answers-{name}.jsonl"
        if jax.process_index() == 0:
            _write_best(path, questions, best)
            if all(isinstance(question.id, int) for question in questions):
                server = self.workdir / f"predictions-{name}.json"
                vqa_metrics.write_results(server, predictions, questions)
        return path.name


def _questions(records: Records) -> list[Question]:
    return [question for several in records.questions for question in several]


def _write_best(
    path: pathlib.Path, questions: list[Question], best: dict[QuestionId, list[Answer]]
) -> None:
    """One line a question: {"question_id", "question", "answers": [{"answer", "score"}]}."""
    lines = []
    for question in questions:
        answers = [{"answer": a.text, "score": round(a.score, 6)} for a in best[question.id]]
        line = {"question_id": question.id, "question": question.text, "answers": answers}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_whole(path, "".join(lines))
