"""Rows that are equal: what is computed of a row is computed once, for the first of its equals.

A row's place in a batch or in a block moves the last bits of what is computed of it. Where equal
rows have to have equal results, to the bit, only the distinct ones are computed and then spread.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True)
class Distinct:
    """Which rows differ: `rows[first]` are the distinct ones, `rows[first][index]` are all.

    first: places of the distinct rows, in order of appearance.
    index: for each row, the place of its equal in `first`.
    """

    first: Int[np.ndarray, " d"]
    index: Int[np.ndarray, " n"]

    @property
    def counts(self) -> Int[np.ndarray, " d"]:
        """How many rows are equal to each distinct one, itself included."""
        return np.bincount(self.index, minlength=len(self.first))

    def take(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
        """The distinct ones of all rows; without a copy where all are."""
        return rows if self._all_differ else np.take(rows, self.first, axis)

    def spread(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
        """All rows, from the distinct ones; without a copy where all are."""
        return rows if self._all_differ else np.take(rows, self.index, axis)

    @property
    def _all_differ(self) -> bool:
        return len(self.first) == len(self.index)


def distinct(keys: Iterable[Hashable]) -> Distinct:
    """Rows are equal where their keys are."""
    places: dict[Hashable, int] = {}
    first: list[int] = []
    index: list[int] = []
    for row, key in enumerate(keys):
        place = places.setdefault(key, len(first))
        if place == len(first):
            first.append(row)
        index.append(place)
    return Distinct(np.array(first, np.int64), np.array(index, np.int64))


def distinct_rows(*arrays: Any) -> Distinct:
    """Rows are equal where those of all arrays, which lead with the same axis, are bit for bit."""
    return distinct(digest(*rows) for rows in zip(*arrays, strict=True))


def digest(*arrays: Any) -> bytes:
    """SHA-256 of the arrays' bytes; for arrays whose shapes and types are known to agree."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.asarray(array).tobytes())
    return found.digest()
