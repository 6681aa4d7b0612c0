"""Counts the texts that a run would cut, and writes the counts into prepare.json."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ml_collections import ConfigDict

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.prepared import read_prepared, write_prepared
from uniadapter_jax.data.records import open_records
from uniadapter_jax.data.tokenizers.clip import Tokenizer
from uniadapter_jax.data.tokenizers.truncation import Cut, Limits, count_cut, cut_lines
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.weights.directory import backbone_family
from uniadapter_jax.weights.families import FAMILIES, Family
from uniadapter_jax.weights.hub.fetch import located
from uniadapter_jax.weights.hub.need import Need
from uniadapter_jax.weights.needed import TOKENIZER, tokenizer_of

NONE = "none"  # without a tokenizer a word counts as one token, the least that it can be


def keep_cut(
    directory: str,
    config: ConfigDict,
    alone: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> None:
    """Counts cut texts for every tokenizer at hand, writes `cut` into prepare.json, and prints it.

    `alone` keeps other commands out while prepare.json is written (only if it changes).

    prepare.json gets {tokenizer: {"fingerprint", the limits, "splits": {split: {"captions",
    "questions", "answers": {"texts", "cut", "longest"}}}}}. A tokenizer is named after its place:
    `config.tokenizer`, `config.backbone`, or `tokenizer` and `wordpiece` of the records.
    """
    content, limits = read_prepared(directory), Limits.from_config(config.data)
    assert content is not None
    if limits is None:  # a config that only says how to prepare
        return
    splits = [name for name, counts in content["coverage"].items() if counts["found"]]
    records = {name: open_records(directory, name) for name in splits}
    cut: dict[str, Any] = {}
    lines: list[str] = []
    for place, tokenizer in _tokenizers(directory, config):
        counts = {name: count_cut(split, tokenizer, limits) for name, split in records.items()}
        cut[place] = {
            "fingerprint": tokenizer.fingerprint if tokenizer else None,
            **dataclasses.asdict(limits),
            "splits": {name: _plain(of_split) for name, of_split in counts.items()},
        }
        where = " (at least: no tokenizer is there)" if tokenizer is None else f" ({place})"
        for name, of_split in counts.items():
            lines += [line + where for line in cut_lines(name, of_split, limits)]
    if content.get("cut") != cut:
        with alone():
            write_prepared(directory, {**content, "cut": cut})
    for line in lines:
        print(line)


def _plain(counts: dict[str, Cut]) -> dict[str, dict[str, int]]:
    return {name: dataclasses.asdict(cut) for name, cut in counts.items()}


def _tokenizers(directory: str, config: ConfigDict) -> Iterator[tuple[str, Tokenizer | None]]:
    places = []
    if "task" in config:
        backbone = config.get("backbone") or ""
        family = _family(backbone, get_task(config.task.name).families)
        if given := config.get("tokenizer"):
            own = _directory(given, "config.tokenizer", tokenizer_of(family))
            places.append(("config.tokenizer", own, family))
        if not backbone.startswith("random:"):
            places.append(
                ("config.backbone", _directory(backbone, "config.backbone", TOKENIZER), family)
            )
    for family in (family for family in FAMILIES.values() if family.records_tokenizer):
        name = family.records_tokenizer
        places.append((name, os.path.join(directory, name), family))
    present = [place for place in places if place[1] and _has_tokenizer(place[1], place[2])]
    for place, path, family in present:
        yield place, family.load_tokenizer(path)
    if not present:
        yield NONE, None


def _directory(place: str, field: str, need: Need) -> str:
    """The directory of a field's tokenizer; "" where it cannot be had: words count then."""
    try:
        return located(place, field, need).directory
    except UserError:  # nothing is wrong with the records; a run says what it lacks
        print(f"texts are counted without the tokenizer of {field}={place}, which is not at hand")
        return ""


def _family(backbone: str, fitting: Sequence[str]) -> Family:
    """The backbone's family, if its config can be read; else the first that fits the task."""
    try:
        return backbone_family(backbone)
    except UserError:
        return FAMILIES[fitting[0]]


def _has_tokenizer(path: str, family: Family) -> bool:
    return any(os.path.isfile(os.path.join(path, name)) for name in family.tokenizer_files)
