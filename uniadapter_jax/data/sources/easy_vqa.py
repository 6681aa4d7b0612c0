"""easy-VQA: 5,000 small pictures of one shape each and 48,248 questions with one answer.

    {train,test}/questions.json     [[question, answer, number of the picture], ...]
    {train,test}/images/<number>.png

as in the folder `easy_vqa/data` of the Python package `easy-vqa`. A question's id is its place in
the file. The question type is 'yes/no', 'color' or 'shape', which follows from the answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.sources.asked import Asked, Gathered
from uniadapter_jax.data.sources.files import Tree
from uniadapter_jax.data.sources.item import Source, clean_text
from uniadapter_jax.data.sources.question import Question

SPLITS = ("train", "test")
QUESTIONS = "questions.json"
_TYPES = {
    **dict.fromkeys(("yes", "no"), "yes/no"),
    **dict.fromkeys(("circle", "rectangle", "triangle"), "shape"),
}


def read(root: str) -> Source:
    """Reads the splits found in `root`, the folder that holds them or one above it."""
    tree = Tree(root)
    gathered = Gathered(root, tuple)  # file names are not unique, so files are not searched by name
    used = []
    for split in SPLITS:
        if path := tree.ending_with(os.path.join(split, QUESTIONS)):
            used.append(split)
            gathered.add(path, split, _asked(tree, path))
    if not used:
        names = " or ".join(os.path.join(split, QUESTIONS) for split in SPLITS)
        raise UserError(f"--input={root} holds no {names}")
    return gathered.source("easy-VQA: " + ", ".join(used))


def _asked(tree: Tree, path: str) -> Iterator[Asked]:
    where, content = os.path.join(tree.root, path), tree.read_json(path)
    if not isinstance(content, list):
        raise UserError(f"{where}: expected a list of records")
    folder = os.path.join(os.path.dirname(path), "images")
    for i, record in enumerate(content):
        text, answer, number = _fields(record, f"{where}: record {i}")
        answer = clean_text(answer)
        question = Question(i, clean_text(text), (answer,), _TYPES.get(answer, "color"))
        yield Asked(i, os.path.join(folder, f"{number}.png"), question)


def _fields(record: Any, place: str) -> tuple[str, str, int]:
    kinds = (str, str, int)
    if not isinstance(record, list) or len(record) != len(kinds):
        raise UserError(f"{place}: expected [question, answer, number of the picture]")
    for value, kind, name in zip(record, kinds, ("question", "answer", "picture"), strict=True):
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{place}: the {name} should be {kind.__name__}, is {value!r}")
    return record[0], record[1], record[2]
