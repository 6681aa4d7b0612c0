"""Several processes index one folder: each a share of its files, and the first puts them together.

    INDEX/shares/files.json    all files to read, in order
    INDEX/shares/I/parts-0/    what process I has encoded, part by part, as an index of its own

The parts that the first process then writes are those that one process alone would have written. A
group that is killed leaves its shares, and the next run, of one process or many, begins with them.
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.files import read_json, write_json
from uniadapter_jax.common.shares import Share
from uniadapter_jax.inference.adapted import AdaptedBackbone
from uniadapter_jax.inference.search import crashes, parts, writing
from uniadapter_jax.inference.search.folder import Changes, Reader
from uniadapter_jax.inference.search.known import Known
from uniadapter_jax.inference.search.parts import Clip, Store, Table

FOLDER, FILES = "shares", "files.json"
_LIST_BYTES = 1 << 32  # of a list that we wrote
_BLOCKS = 4  # of a share, at least where there are so many files: slow files spread


def announce(index: pathlib.Path, files: Sequence[str]) -> None:
    """Writes down which files are to be read, for all processes."""
    with disk_errors(index):
        (index / FOLDER).mkdir(exist_ok=True)
    write_json(index / FOLDER / FILES, list(files))


def share_of(files: Sequence[str], share: Share) -> list[str]:
    """The files of a share: block by block, so that a large share has the parts of the whole."""
    size = min(writing.CLIPS, max(1, len(files) // (_BLOCKS * share.count)))
    blocks = [files[start : start + size] for start in range(0, len(files), size)]
    return [file for block in share.of(blocks) for file in block]


def write_share(
    index: pathlib.Path,
    share: Share,
    reader: Reader,
    model: AdaptedBackbone,
    dtype: str,
    known: Known,
    say: Callable[[str], None],
) -> None:
    """Encodes the files of a share."""
    files = read_json(index / FOLDER / FILES, list, limit=_LIST_BYTES)
    todo = Changes(share_of(files, share), [])
    store = Store(_folder(index, share), 0)
    with disk_errors(store.folder):
        store.folder.mkdir(parents=True, exist_ok=True)
    writing.write_changes(store, model, dtype, reader, todo, known, say)


def reading(index: pathlib.Path, share: Share) -> crashes.Reading:
    """Notes what a share's process is reading; suspects are those of the last run."""
    folder = _folder(index, share)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return crashes.Reading(index, folder)


def _folder(index: pathlib.Path, share: Share) -> pathlib.Path:
    return index / FOLDER / str(share.index)


def merge(
    index: pathlib.Path, store: Store, table: Table, width: int, dtype: str, gone: Iterable[str]
) -> None:
    """Writes what all shares have into the index, and removes them.

    Equal files get the rows of the first of them, as if one process had met them in order.

    Args:
      table: of the index so far.
      gone: files that are no longer there.
    """
    folders = sorted((index / FOLDER).glob("[0-9]*"))
    tables = [Store(folder, 0).read(width) for folder in folders if (folder / "parts-0").is_dir()]
    found = _Found(tables)
    part = _Part(store, width, dtype, gone)
    for path in sorted(path for one in tables for path in one.files):
        if table.files.get(path) != found.files[path]:  # else a merge was killed after it
            part.add(found.lines(path))
    part.write()
    crashes.keep_suspects(index, folders)
    shutil.rmtree(index / FOLDER, ignore_errors=True)


class _Found:
    """What shares say of files, with rows by content."""

    def __init__(self, tables: Sequence[Table]):
        self.files = {path: stamp for one in tables for path, stamp in one.files.items()}
        self._bad = {path: bad for one in tables for path, bad in one.bad.items()}
        self._clips: dict[str, list[tuple[Clip, np.ndarray]]] = {}
        for one in tables:
            for part in one.parts:
                for clip in part.clips:
                    rows = part.rows[clip.row : clip.row + clip.rows]
                    self._clips.setdefault(clip.path, []).append((clip, rows))
        self._first: dict[str, str] = {}
        for path in sorted(self._clips):
            self._first.setdefault(self.files[path].digest, path)

    def lines(self, path: str) -> list[tuple[dict[str, Any], np.ndarray | None]]:
        """The lines of a file, with the rows of each clip."""
        stamp = self.files[path]
        if path in self._bad:
            return [(parts.bad_line(self._bad[path], stamp), None)]
        lines: list[tuple[dict[str, Any], np.ndarray | None]] = []
        for clip, rows in self._clips[self._first[stamp.digest]]:
            name = parts.clip_id(path, clip.start, clip.end, clip.whole)
            lines.append((parts.clip_line(clip._replace(id=name, path=path), stamp), rows))
        return lines


class _Part:
    """The part in the making; it is written once it is full, as `writing` does."""

    def __init__(self, store: Store, width: int, dtype: str, gone: Iterable[str]):
        self._store, self._empty = store, np.empty((0, width), dtype)
        self._number = max(store.numbers(), default=-1) + 1
        self._lines = [parts.gone_line(path) for path in gone]
        self._rows: list[np.ndarray] = []
        self._count = 0

    def add(self, lines: Sequence[tuple[dict[str, Any], np.ndarray | None]]) -> None:
        """Takes the lines of a file."""
        for line, rows in lines:
            if rows is not None:
                line = {**line, "row": self._count}
                self._count += len(rows)
                self._rows.append(rows)
            self._lines.append(line)
        if len(self._lines) >= writing.CLIPS:
            self.write()

    def write(self) -> None:
        """Writes what there is as a part."""
        if self._lines:
            rows = np.concatenate([self._empty, *self._rows])
            self._store.write(self._number, rows, parts.in_order(self._lines))
            self._number += 1
            self._lines, self._rows, self._count = [], [], 0


def left(index: pathlib.Path) -> bool:
    """Whether a group of processes was killed here."""
    return (index / FOLDER).is_dir()
