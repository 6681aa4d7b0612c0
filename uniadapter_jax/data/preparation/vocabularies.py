"""Trains tokenizers on the texts of records, into directories of the records."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Mapping

from uniadapter_jax.data.preparation.work import empty
from uniadapter_jax.data.records import open_records
from uniadapter_jax.data.tokenizers.clip import train_tokenizer
from uniadapter_jax.data.tokenizers.wordpiece import train_wordpiece

FOLDERS = ("tokenizer", "wordpiece")


def train(records: str, target: str, size: int) -> None:
    """Trains the tokenizer that `target` is named after: `tokenizer` (CLIP), `wordpiece` (BLIP)."""
    split = open_records(records, "train")
    texts = (caption for clip in split.captions for caption in clip)
    if os.path.basename(target) == "tokenizer":
        train_tokenizer(texts, size, target)
    else:
        asked = (question for several in split.questions for question in several)
        of_questions = (text for q in asked for text in (q.text, *q.answers))
        train_wordpiece(itertools.chain(texts, of_questions), size, target)


def train_all(new: str, old: str, sizes: Mapping[str, int]) -> None:
    """Trains those with a size for new records, and takes over the others of the old ones.

    Weights that were trained with a tokenizer need that one.
    """
    for folder, size in sizes.items():
        train(new, os.path.join(new, folder), size)
    for folder in FOLDERS:
        before = os.path.join(old, folder)
        if folder not in sizes and os.path.isdir(before):
            shutil.copytree(before, os.path.join(new, folder))
            print(f"{folder} stays as it was; --train-{folder}=N trains it anew")


def add(output: str, work: str, sizes: Mapping[str, int]) -> None:
    """Trains the tokenizers that finished records lack."""
    for folder, size in sizes.items():
        target = os.path.join(output, folder)
        if not os.path.exists(target):
            train(output, os.path.join(work, folder), size)
            os.rename(os.path.join(work, folder), target)
            print(f"trained {target}")
    empty(work)
