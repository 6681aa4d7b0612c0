"""Rows by the content of their file: copies get the same ones, renamed files need no decoding."""

from __future__ import annotations

import numpy as np

from uniadapter_jax.inference.search.parts import Table

Place = tuple[float | None, float | None, bool]  # start, end, whole


class Known:
    """The rows of files that were encoded; of equal files, those of the first."""

    def __init__(self, table: Table):
        self._files: dict[str, tuple[str, dict[Place, np.ndarray]]] = {}
        for part in table.parts:
            rows = np.asarray(part.rows)  # views of it are small
            for clip in part.clips:
                place = clip.start, clip.end, clip.whole
                there = rows[clip.row : clip.row + clip.rows]
                self.put(table.files[clip.path].digest, clip.path, place, there)

    def __contains__(self, digest: object) -> bool:
        return digest in self._files

    def get(self, digest: str) -> dict[Place, np.ndarray]:
        """Rows by the places of their clips; empty if no such file was encoded."""
        return self._files[digest][1] if digest in self._files else {}

    def put(self, digest: str, path: str, place: Place, rows: np.ndarray) -> None:
        """Takes, or replaces, the rows of a clip."""
        owner, places = self._files.setdefault(digest, (path, {}))
        if owner == path:
            places[place] = rows

    def forget(self, digest: str) -> None:
        """Drops a file that turned out to be bad."""
        self._files.pop(digest, None)
