"""MSRVTT-QA: questions with one answer about the clips of MSR-VTT, in its full split.

    original        {train,val,test}_qa.json: [{"id", "question", "answer", "video_id": 6513}]
    LAVIS, VindLU   qa_{train,val,test}.json: [{"question_id", "question", "answer",
                    "video": "video6513.mp4"}]
    ClipBERT        {train,val,test}.jsonl of {"question", "answer", "video_id": "video6513",
                    "answer_type"}; a question's id is its line

The question type is the question's first word, or ClipBERT's `answer_type` where it exists.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.sources.asked import Asked, Gathered
from uniadapter_jax.data.sources.files import Fields, Tree
from uniadapter_jax.data.sources.item import Source, clean_text
from uniadapter_jax.data.sources.manifest import json_lines
from uniadapter_jax.data.sources.question import Question, QuestionId, read_id

SPLITS = ("train", "val", "test")
QUESTION_TYPES = ("what", "who", "how", "when", "where")


def read(root: str) -> Source:
    """Reads the first layout whose files exist, with the splits that it has."""
    tree = Tree(root)
    for layout, reader in LAYOUTS.items():
        files = {s: path for s in SPLITS if (path := tree.find(layout.format(split=s)))}
        if files:
            return _read(tree, files, reader)
    names = ", ".join(layout.format(split="train") for layout in LAYOUTS)
    raise UserError(f"--input={root} holds no MSRVTT-QA annotations; expected one of {names}")


def _read(
    tree: Tree, files: dict[str, str], reader: Callable[[Tree, str], Iterator[Asked]]
) -> Source:
    gathered = Gathered(tree.root, tree.place_clips)
    for split, path in files.items():
        gathered.add(path, split, reader(tree, path))
    return gathered.source("MSRVTT-QA: " + ", ".join(map(os.path.basename, files.values())))


def _original(tree: Tree, path: str) -> Iterator[Asked]:
    fields = Fields(os.path.join(tree.root, path))
    for i, record in enumerate(_records(tree, path)):
        video = fields.get(record, "video_id", int, i)
        question = _question(fields, record, i, read_id(fields, record, i, "id"))
        yield Asked(i, f"video{video}", question)


def _lavis(tree: Tree, path: str) -> Iterator[Asked]:
    fields = Fields(os.path.join(tree.root, path))
    for i, record in enumerate(_records(tree, path)):
        video = os.path.splitext(os.path.basename(fields.get(record, "video", str, i)))[0]
        yield Asked(i, video, _question(fields, record, i, read_id(fields, record, i)))


def _clipbert(tree: Tree, path: str) -> Iterator[Asked]:
    where = os.path.join(tree.root, path)
    for number, record in json_lines(where):
        fields = Fields(f"{where}, line {number}")
        video = fields.get(record, "video_id", str)
        question_type = fields.get(record, "answer_type", str)
        yield Asked(number, video, _question(fields, record, "", number, question_type))


LAYOUTS: dict[str, Callable[[Tree, str], Iterator[Asked]]] = {
    "{split}_qa.json": _original,
    "qa_{split}.json": _lavis,
    "{split}.jsonl": _clipbert,
}


def _records(tree: Tree, path: str) -> list[Any]:
    content = tree.read_json(path)
    if not isinstance(content, list):
        raise UserError(f"{os.path.join(tree.root, path)}: expected a list of records")
    return content


def _question(
    fields: Fields, record: Any, index: int | str, name: QuestionId, question_type: str = ""
) -> Question:
    text = clean_text(fields.get(record, "question", str, index))
    answer = clean_text(fields.get(record, "answer", str, index))
    first = text.lower().split(maxsplit=1)[:1]
    if not question_type and first and first[0] in QUESTION_TYPES:
        question_type = first[0]
    return Question(name, text, (answer,), question_type)
