"""VQAv2 as its authors publish it: questions and annotations in two files per split.

    v2_OpenEnded_mscoco_{train2014,val2014,test-dev2015,test2015}_questions.json
        {"questions": [{"question_id", "image_id", "question"}]}
    v2_mscoco_{train2014,val2014}_annotations.json
        {"annotations": [{"question_id", "image_id", "question_type", "answer_type",
                          "answers": [{"answer"}, ... ten of them]}]}

Pictures are COCO's: val2014/COCO_val2014_000000262148.jpg, in any folder below the input directory.
The answers of the test splits are not public; `test-dev` is a subset of `test`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.sources.asked import Asked, Gathered
from uniadapter_jax.data.sources.files import Fields, Tree
from uniadapter_jax.data.sources.item import Source, clean_text
from uniadapter_jax.data.sources.question import Question

SPLITS = {"train": "train2014", "val": "val2014", "test_dev": "test-dev2015", "test": "test2015"}
UNANSWERED = ("test_dev", "test")
MIXED = "the two files are not of one release"


def read(root: str) -> Source:
    """Reads the splits whose question files exist."""
    tree = Tree(root)
    gathered = Gathered(root, tree.place_pictures)
    used = []
    for split, name in SPLITS.items():
        if not (questions := tree.find(f"v2_OpenEnded_mscoco_{name}_questions.json")):
            continue
        used.append(split)
        answered = split not in UNANSWERED
        annotations = _annotations(tree, name) if answered else {}
        asked = _asked(tree, questions, name.replace("-dev", ""), annotations)
        gathered.add(questions, split, asked, answered)
        if annotations:
            raise UserError(
                f"{os.path.join(root, questions)} does not ask question {next(iter(annotations))}, "
                f"which v2_mscoco_{name}_annotations.json answers; {MIXED}"
            )
    if not used:
        raise UserError(
            f"--input={root} holds no VQAv2 questions; expected one of "
            + ", ".join(f"v2_OpenEnded_mscoco_{name}_questions.json" for name in SPLITS.values())
        )
    return gathered.source("VQAv2, official: " + ", ".join(used))


def _annotations(tree: Tree, name: str) -> dict[int, Any]:
    """{question id: its annotation} of a split."""
    file = f"v2_mscoco_{name}_annotations.json"
    if not (path := tree.find(file)):
        raise UserError(f"--input={tree.root} holds the questions of {name} but no {file}")
    where = os.path.join(tree.root, path)
    fields = Fields(where)
    annotations: dict[int, Any] = {}
    for i, record in enumerate(fields.get(tree.read_json(path), "annotations", list)):
        question = fields.get(record, "question_id", int, i)
        if question in annotations:
            raise UserError(f"{where}: record {i}: question {question} is answered twice")
        answers = fields.get(record, "answers", list, i)
        annotations[question] = {
            "picture": fields.get(record, "image_id", int, i),
            "answers": tuple(clean_text(fields.get(a, "answer", str, i)) for a in answers),
            "question_type": fields.get(record, "question_type", str, i),
            "answer_type": fields.get(record, "answer_type", str, i),
        }
    return annotations


def _asked(tree: Tree, path: str, folder: str, annotations: dict[int, Any]) -> Iterator[Asked]:
    """Yields the questions; removes the annotations that it uses from the dictionary."""
    where = os.path.join(tree.root, path)
    fields = Fields(where)
    for i, record in enumerate(fields.get(tree.read_json(path), "questions", list)):
        number = fields.get(record, "question_id", int, i)
        picture = fields.get(record, "image_id", int, i)
        known = annotations.pop(number, {})
        if known.pop("picture", picture) != picture:
            raise UserError(
                f"{where}: record {i}: question {number} is about picture {picture}, its "
                f"annotation about another; {MIXED}"
            )
        question = Question(number, clean_text(fields.get(record, "question", str, i)), **known)
        yield Asked(i, os.path.join(folder, f"COCO_{folder}_{picture:012d}.jpg"), question)
