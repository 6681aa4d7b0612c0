"""Cleans captions and questions before they are tokenized."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from uniadapter_jax.common.errors import UserError

PREPROCESS = ("none", "blip")
_MARKS = re.compile(r'[.!"()*#:;~]')
_BLANKS = re.compile(r"\s{2,}")


@dataclasses.dataclass(frozen=True)
class TextRule:
    """`config.data.preprocess`: 'none' leaves texts as they are, 'blip' cleans them as BLIP does.

    `max_words` is the most words that 'blip' keeps; 0 keeps all.
    """

    preprocess: str = "none"
    max_words: int = 0

    def __post_init__(self) -> None:
        if self.preprocess not in PREPROCESS:
            raise UserError(
                f"config.data.preprocess={self.preprocess!r} is not one of {', '.join(PREPROCESS)}"
            )
        if self.max_words < 0:
            raise UserError(f"config.data.max_words={self.max_words} should be at least 0")

    def captions(self, texts: Sequence[str]) -> list[str]:
        if self.preprocess == "none":
            return list(texts)
        return [pre_caption(text, self.max_words) for text in texts]

    def questions(self, texts: Sequence[str]) -> list[str]:
        if self.preprocess == "none":
            return list(texts)
        return [pre_question(text, self.max_words) for text in texts]


def pre_caption(text: str, max_words: int = 0) -> str:
    """Lower case, BLIP's marks replaced by blanks, runs of blanks by one, no blanks at the ends.

    Hyphen, comma, question mark, apostrophe and slash stay.
    """
    bare = _BLANKS.sub(" ", _MARKS.sub(" ", text.lower()))
    return _first(bare.rstrip("\n").strip(" "), max_words)


def pre_question(text: str, max_words: int = 0) -> str:
    """Lower case, BLIP's marks removed without a blank in their place, no blanks at the end."""
    return _first(_MARKS.sub("", text.lower()).rstrip(" "), max_words)


def _first(text: str, max_words: int) -> str:
    words = text.split(" ")
    return " ".join(words[:max_words]) if 0 < max_words < len(words) else text
