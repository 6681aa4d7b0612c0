"""What every source yields: one clip or picture with its texts."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

SPLIT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def clean_text(text: str) -> str:
    """Text as it is stored: white space at the ends and what no file can hold are gone."""
    return text.encode("utf-8", "replace").decode().replace("\0", " ").strip()


@dataclasses.dataclass(frozen=True)
class Item:
    """One clip, or a picture (a clip of one frame).

    Attributes:
      id: unique within the split.
      path: of the media file, relative to the source's root or absolute. It need not exist.
      split: 'train', 'val', 'test' or a name of the user's own.
      captions: as annotated; may hold empty ones, which `prepare` drops and counts.
      start, end: seconds into the file; None means its beginning, its end.
      qa: question-answer records, any JSON objects; `question.Question` is what tasks read.
      hint: where the file is not there, what is there instead, in words.
    """

    id: str
    path: str
    split: str
    captions: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None
    qa: tuple[dict[str, Any], ...] = ()
    hint: str = ""


@dataclasses.dataclass(frozen=True)
class Source:
    """Everything that a source says about a data set; `root` is where relative paths start."""

    protocol: str  # which of the set's splits and captions were taken, in words
    root: str
    items: tuple[Item, ...]
    left_out: tuple[dict[str, Any], ...] = ()  # questions, as lines of `report.jsonl`
