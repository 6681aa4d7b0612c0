"""A user's own clips and pictures: one JSON object per line.

    {"id": "cat", "path": "media/cat.mp4", "captions": ["a cat jumps"]}
    {"id": "cat2", "path": "media/cat.mp4", "start": 4.0, "end": 9.5, "captions": ["it sleeps"],
     "qa": [{"question": "what sleeps?", "answer": "cat"}], "split": "test"}     (in one line)

`path` is relative to the manifest or absolute. `split` defaults to train. Other fields are ignored,
unless they look like a misspelt name.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator
from typing import Any

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError, parse_line, read_bytes
from uniadapter_jax.data.sources.item import SPLIT_NAME, Item, Source
from uniadapter_jax.data.sources.question import QuestionId, read_questions
from uniadapter_jax.data.sources.text_files import LARGEST

NAMES = ("manifest.jsonl",)
FIELDS = ("id", "path", "start", "end", "captions", "qa", "split")
SHOWN_ERRORS = 10


def read(path: str) -> Source:
    """Reads a manifest; `path` is its file, or a directory with a `manifest.jsonl`."""
    if os.path.isdir(path):
        path = os.path.join(path, NAMES[0])
    if not os.path.isfile(path):
        raise UserError(f"--input: no manifest at {path}")
    items: list[Item] = []
    errors: list[str] = []
    seen: dict[tuple[str, str], int] = {}
    asked: dict[tuple[str, QuestionId], int] = {}
    for number, record in json_lines(path, errors):
        try:
            item = _item(record)
            first = seen.setdefault((item.split, item.id), number)
            if first != number:
                raise ValueError(f"id {item.id!r} was taken by line {first} of this split")
            questions = read_questions(item.qa, item.id)
            if len({question.id for question in questions}) < len(questions):
                raise ValueError("'qa' has two questions of one id")
            for question in questions:
                first = asked.setdefault((item.split, question.id), number)
                if first != number:
                    raise ValueError(f"question {question.id!r} was asked by line {first}")
            items.append(item)
        except (ValueError, UserError) as error:
            errors.append(f"{path}, line {number}: {error}")
    if errors:
        more = len(errors) - SHOWN_ERRORS
        tail = [f"and {more} more"] if more > 0 else []
        raise UserError("\n  ".join(["the manifest has errors:", *errors[:SHOWN_ERRORS], *tail]))
    if not items:
        raise UserError(f"{path}: no records")
    root = os.path.dirname(os.path.abspath(path))
    return Source(f"manifest: {os.path.basename(path)}", root, tuple(items), own=True)


def json_lines(path: str, errors: list[str] | None = None) -> Iterator[tuple[int, Any]]:
    """(line number, value) of every line that is not blank.

    An error about a line that is not JSON is appended to `errors`, or raised if that is None.
    """
    try:
        lines = read_bytes(path, LARGEST).split(b"\n")
    except FileNotFoundError as error:
        raise FileError(path, "no such file") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, parse_line(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except ValueError as error:
            message = f"{path}, line {number}: not JSON: {error}"
            if errors is None:
                raise UserError(message) from error
            errors.append(message)


def _item(record: Any) -> Item:
    """Makes an item of a record; a ValueError names the field."""
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {type(record).__name__}")
    for name in record:
        if name not in FIELDS and (close := difflib.get_close_matches(name, FIELDS, 1, 0.75)):
            raise ValueError(f"unknown field {name!r}; did you mean {close[0]!r}?")
    start, end = _seconds(record, "start"), _seconds(record, "end")
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"'end' ({end}) should come after 'start' ({start or 0.0})")
    split = record.get("split", "train")
    if not isinstance(split, str) or not SPLIT_NAME.fullmatch(split) or split.lower() == "all":
        raise ValueError(f"'split' should be a word such as train, val, test, is {split!r}")
    return Item(
        id=_text(record, "id"),
        path=_text(record, "path"),
        split=split,
        captions=tuple(_list(record, "captions", str)),
        start=start,
        end=end,
        qa=tuple(_list(record, "qa", dict)),
    )


def _text(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"'{name}' should be a string that is not empty, is {value!r}")
    return value


def _seconds(record: dict[str, Any], name: str) -> float | None:
    value = record.get(name)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= sys.float_info.max:
        shown = str(value)[:80]
        raise ValueError(f"'{name}' should be seconds (a number of at least 0), is {shown!r}")
    return float(value)


def _list(record: dict[str, Any], name: str, kind: type) -> list[Any]:
    value = record.get(name)
    value = [] if value is None else value
    if not isinstance(value, list) or not all(isinstance(entry, kind) for entry in value):
        words = "strings" if kind is str else "objects"
        raise ValueError(f"'{name}' should be a list of {words}, is {str(value)[:80]!r}")
    return value
