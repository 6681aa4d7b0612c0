"""The texts of a split as evaluation reads them, which are the same each time it is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from uniadapter_jax.common.types import Int
from uniadapter_jax.data.records import Records


class Split(NamedTuple):
    """Texts of a split: the clip of each, its ids, and its name."""

    records: Records
    item: Int[np.ndarray, " n"]
    ids: Int[np.ndarray, "n l"]
    names: list[str]


class SplitTexts:
    """Tokenizes a split at its first evaluation, by a function of captions."""

    def __init__(self, tokenize: Callable[[list[str]], np.ndarray]):
        self._tokenize = tokenize
        self._known: dict[int, Split] = {}  # by the identity of records, of which a run has a few

    def of(self, records: Records) -> Split:
        """The texts of these records."""
        if id(records) not in self._known:
            self._known[id(records)] = self._read(records)
        return self._known[id(records)]

    def _read(self, records: Records) -> Split:
        counts = [len(captions) for captions in records.captions]
        clips = zip(records.ids, counts, strict=True)
        names = [f"{clip}#{j}" for clip, count in clips for j in range(count)]
        ids = self._tokenize([caption for clip in records.captions for caption in clip])
        return Split(records, np.repeat(np.arange(len(records)), counts), ids, names)
