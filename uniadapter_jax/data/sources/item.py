"""The items that every source yields: a clip or picture with its texts."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

SPLIT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def clean_text(text: str) -> str:
    """The text as it is stored, without white space at its ends and unstorable characters."""
    return text.encode("utf-8", "replace").decode().replace("\0", " ").strip()


@dataclasses.dataclass(frozen=True)
class Item:
    """One clip, or a picture (a clip of one frame).

    Attributes:
      id: unique within the split.
      path: the media file, relative to the source's root or absolute. It need not exist.
      split: 'train', 'val', 'test' or the user's own name.
      captions: the annotated captions; `prepare` drops and counts empty ones.
      start, end: seconds into the file; None means its beginning, its end.
      qa: question-answer records, any JSON objects; tasks read them as `question.Question`.
      hint: if the file does not exist, says which similar files do.
    """

    id: str
    path: str
    split: str
    captions: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None
    qa: tuple[dict[str, Any], ...] = ()
    hint: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        """The captions as they are stored, without empty ones."""
        return tuple(filter(None, map(clean_text, self.captions)))


@dataclasses.dataclass(frozen=True)
class Source:
    """The annotations of a data set; relative paths start at `root`.

    Attributes:
      own: whether they are a user's own, who may not have captions for all clips.
    """

    protocol: str  # which of the set's splits and captions were taken, in words
    root: str
    items: tuple[Item, ...]
    left_out: tuple[dict[str, Any], ...] = ()  # questions, as lines of `report.jsonl`
    own: bool = False
