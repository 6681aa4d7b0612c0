"""Finds equal rows, so that a result is computed only once for each distinct row.

A row's position in a batch or block changes the last bits of its result. Where equal rows must have
equal results, to the bit, only the distinct ones are computed, and the results are then spread.
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
    """The distinct rows of an array: `rows[first]` are these, `rows[first][index]` are all rows.

    first: positions of the distinct rows, in order of appearance.
    index: for each row, the position of the equal one in `first`.
    """

    first: Int[np.ndarray, " d"]
    index: Int[np.ndarray, " n"]

    @property
    def counts(self) -> Int[np.ndarray, " d"]:
        """The number of rows equal to each distinct one, itself included."""
        return np.bincount(self.index, minlength=len(self.first))

    def take(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
        """The distinct rows of all rows; no copy if all are distinct."""
        return rows if self._all_differ else np.take(rows, self.first, axis)

    def spread(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
        """All rows, from the distinct ones; no copy if all are distinct."""
        return rows if self._all_differ else np.take(rows, self.index, axis)

    @property
    def _all_differ(self) -> bool:
        return len(self.first) == len(self.index)


def distinct(keys: Iterable[Hashable]) -> Distinct:
    """The distinct rows, where rows with equal keys are equal."""
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
    """The distinct rows of arrays with a common leading axis, compared bit for bit."""
    return distinct(digest(*rows) for rows in zip(*arrays, strict=True))


def digest(*arrays: Any) -> bytes:
    """The SHA-256 of the arrays' bytes; their shapes and types have to be known to agree."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.asarray(array).tobytes())
    return sha.digest()
