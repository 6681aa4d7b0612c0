"""The index of a split: a line for each record, with its texts and what its frames hash to."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import Any

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import parse_line, read_lines
from uniadapter_jax.data.prepared import check_digest, splits_of
from uniadapter_jax.data.sources.question import has_answer

LINE_BYTES = 4 << 20  # most bytes of an index line; a picture's questions take some KB
_INDEX_FIELDS = {"id": str, "captions": list, "frames": int, "qa": list, "sha256": str}


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """The index entry of a record, and its place in the index file.

    The questions of a large set would fill gigabytes, so only their number is kept.
    """

    id: str
    captions: list[str]
    frames: int
    frames_digest: bytes  # SHA-256 of the frames, one after the other
    frames_before: int  # stored frames of the split before this clip
    questions: int
    unanswered: int  # questions without an answer
    digest: bytes  # SHA-256 of the index line
    split: str
    number: int  # position of the record within the split
    start: int  # bytes into the index file
    size: int


def read_index(root: str, split: str, prepared: dict[str, Any]) -> list[Line]:
    """The lines of a split's index.

    Raises:
      UserError: there is no such split, or its index is damaged; the message names the line.
    """
    path = index_path(root, split)
    if not os.path.exists(path):
        raise UserError(f"{root} has no split {split!r}; it has {', '.join(splits_of(root))}")
    lines: list[Line] = []
    start, frames, digest = 0, 0, hashlib.sha256()
    for number, text in read_lines(path, LINE_BYTES):
        try:
            lines.append(_parse_line(text, split, number - 1, start, frames))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not an index line: {error}") from error
        start += len(text)
        frames += lines[-1].frames
        digest.update(text)
    expected = prepared["coverage"].get(split, {}).get("found")
    if len(lines) != expected:
        raise UserError(f"{path} has {len(lines)} lines, prepare.json counts {expected}")
    check_digest(path, prepared, os.path.basename(path), digest.hexdigest())
    return lines


def _parse_line(text: bytes, split: str, number: int, start: int, frames: int) -> Line:
    """Parses an index line; a ValueError names the field."""
    value = parse_line(text)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    for name, kind in _INDEX_FIELDS.items():
        if type(value.get(name)) is not kind:
            raise ValueError(f"{name!r} should be {kind.__name__}, is {value.get(name)!r:.80}")
    if not all(isinstance(caption, str) for caption in value["captions"]):
        raise ValueError("'captions' should be a list of strings")
    if value["frames"] < 1:
        raise ValueError(f"'frames' should be at least 1, is {value['frames']}")
    return Line(
        id=value["id"],
        captions=value["captions"],
        frames=value["frames"],
        frames_digest=bytes.fromhex(value["sha256"]),
        frames_before=frames,
        questions=len(value["qa"]),
        unanswered=sum(not has_answer(record) for record in value["qa"]),
        digest=line_digest(text),
        split=split,
        number=number,
        start=start,
        size=len(text),
    )


def index_path(root: str, split: str) -> str:
    """The file of a split's index."""
    return os.path.join(root, f"index-{split}.jsonl")


def line_digest(text: bytes) -> bytes:
    """SHA-256 of an index line."""
    return hashlib.sha256(text).digest()
