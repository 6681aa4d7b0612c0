"""Scores of the second stage that a killed run leaves behind, one file per batch of items."""

from __future__ import annotations

import hashlib
import io
import pathlib
import shutil
from collections.abc import Iterable

import jax
import numpy as np

from uniadapter_jax.adapters.partition import flat_names
from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.files import write_whole
from uniadapter_jax.common.types import PyTree
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.tasks.matching.reranking_plan import Pairs


def identity_of(said: str, trainable: PyTree, arrays: Iterable[np.ndarray]) -> str:
    """A hash of all that scores depend on: what the caller says, weights that train, and texts."""
    whole = hashlib.sha256(said.encode())
    weights = sorted(flat_names(meshes.fetch(trainable)).items())
    for name, array in [*weights, *(("", array) for array in arrays)]:
        whole.update(f"{name} {array.shape} {array.dtype} ".encode())
        whole.update(np.ascontiguousarray(array).view(np.uint8).data)
    return whole.hexdigest()


class Parts:
    """The files below `directory`; None keeps none. Only the first process reads and writes.

    A file counts where it is of the same `identity` and holds exactly the pairs that are wanted of
    its items; any other is written anew.
    """

    def __init__(self, directory: pathlib.Path | None, identity: str):
        self.directory = directory if jax.process_index() == 0 else None
        self.identity = identity

    def _path(self, start: int) -> pathlib.Path:
        assert self.directory is not None
        return self.directory / f"items-{start:08d}.npz"

    def read(self, pairs: Pairs, start: int, stop: int) -> np.ndarray | None:
        """Scores of the pairs of items [start, stop), or None."""
        if self.directory is None:
            return None
        part = pairs.of_items(start, stop)
        try:
            with np.load(self._path(start), allow_pickle=False) as file:
                same = str(file["identity"]) == self.identity and all(
                    np.array_equal(file[name], getattr(pairs, name)[part])
                    for name in ("text", "item")
                )
                return file["scores"] if same else None
        except Exception:  # no such file, or damaged: zip, zlib and numpy have many types for it
            return None

    def write(self, pairs: Pairs, start: int, stop: int, scores: np.ndarray) -> None:
        """All or nothing, also when the process or the machine dies in between."""
        if self.directory is None:
            return
        path, part = self._path(start), pairs.of_items(start, stop)
        content = io.BytesIO()
        np.savez(
            content,
            identity=np.array(self.identity),
            text=pairs.text[part],
            item=pairs.item[part],
            scores=scores,
        )
        with disk_errors(path, scores.nbytes):
            self.directory.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())

    def remove(self) -> None:
        """Once all is done."""
        if self.directory is not None and self.directory.is_dir():
            shutil.rmtree(self.directory)
