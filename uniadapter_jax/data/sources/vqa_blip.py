"""VQAv2 and Visual Genome QA in BLIP's files; a picture is a clip of one frame.

    vqa_train.json, vqa_val.json   [{"question_id", "question", "answer": [...], "image",
                                   "dataset": "vqa"}]
    vqa_test.json                  the same without "answer"
    vg_qa.json                     the same, "answer" one string, "dataset" "vg": split `vg`

`image` is a path such as val2014/COCO_val2014_000000262148.jpg; it may lie in any folder below the
input directory. These files have no question and answer types, and 7 questions fewer than VQAv2.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.sources.asked import Asked, Gathered
from uniadapter_jax.data.sources.files import Fields, Tree
from uniadapter_jax.data.sources.item import Source, clean_text
from uniadapter_jax.data.sources.question import Question, read_answers, read_id

FILES = {
    "train": "vqa_train.json",
    "val": "vqa_val.json",
    "test": "vqa_test.json",
    "vg": "vg_qa.json",
}
WEIGHTS = {"vqa": 1.0, "vg": 0.2}  # BLIP trusts one answer of Visual Genome less than ten of VQAv2


def read(root: str) -> Source:
    """Reads the splits whose files exist."""
    tree = Tree(root)
    gathered = Gathered(root, tree.place_pictures)
    used = []
    for split, name in FILES.items():
        if path := tree.find(name):
            used.append(name)
            gathered.add(path, split, _asked(tree, path), answered=split != "test")
    if not used:
        raise UserError(f"--input={root} holds none of {', '.join(FILES.values())}")
    return gathered.source("BLIP's VQA files: " + ", ".join(used))


def _asked(tree: Tree, path: str) -> Iterator[Asked]:
    where, content = os.path.join(tree.root, path), tree.read_json(path)
    if not isinstance(content, list):
        raise UserError(f"{where}: expected a list of records")
    fields = Fields(where)
    for i, record in enumerate(content):
        image = fields.get(record, "image", str, i)
        dataset = fields.get(record, "dataset", str, i)
        if dataset not in WEIGHTS:
            raise UserError(
                f"{where}: record {i}: unknown dataset {dataset!r}; known are {', '.join(WEIGHTS)}"
            )
        question = Question(
            id=read_id(fields, record, i),
            text=clean_text(fields.get(record, "question", str, i)),
            answers=read_answers(fields, record, "answer", i),
            weight=WEIGHTS[dataset],
        )
        yield Asked(i, image, question)
