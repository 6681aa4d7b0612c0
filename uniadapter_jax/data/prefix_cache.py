"""What a frozen part of a model makes of stored frames and of captions, on disk, once for all runs.

A cache is a directory with `cache.json` (what the rows depend on, and their shapes) and two tables:

    frames.bin   a row for each frame that training reads, clip by clip
    text.bin     a row for each caption, clip by clip
    *.done       eight bytes for each clip, or caption: 0 until its rows are complete on disk, then
                 2**32 and their CRC-32, which is compared at every read

Rows depend on nothing but what `cache.json` says, so several processes may write the same row. A
process that is killed leaves rows that are not marked, which the next one makes anew.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Bool, Int

from uniadapter_jax.common.disk import disk_errors, free_bytes
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError, read_json, sealed, unsealed, write_json
from uniadapter_jax.data.records import Records

DTYPES: Mapping[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
DESCRIPTION = "cache.json"
MARK = np.dtype("<u8")
COMPLETE = 2**32
FRAMES, TEXT = "frames", "text"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of one shape in a file, in groups that are written whole; picklable.

    Attributes:
      path: the file, without its ending.
      first: the first row of each group, and the number of all rows.
    """

    path: pathlib.Path
    first: Int[np.ndarray, " g"]
    shape: tuple[int, ...]
    dtype: str

    @property
    def groups(self) -> int:
        return len(self.first) - 1

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def bytes(self) -> int:
        return int(self.first[-1]) * self.row_bytes

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """All rows, mapped from the file, to read."""
        shape = int(self.first[-1]), *self.shape
        return np.memmap(self.path.with_suffix(".bin"), DTYPES[self.dtype], "r", shape=shape)

    @functools.cached_property
    def marks(self) -> np.ndarray:
        """The marks of all groups, mapped from the file, to read."""
        return np.memmap(self.path.with_suffix(".done"), MARK, "r", shape=(self.groups,))

    def read(self, group: int) -> np.ndarray:
        """The rows of a complete group; raises `FileError` if they are not what was written."""
        begin, end = self.first[group : group + 2].tolist()
        rows = self.rows[begin:end]
        if self.marks[group] != _mark(rows):
            raise FileError(
                self.path.with_suffix(".bin"),
                f"rows {begin} to {end} are damaged; remove the directory {self.path.parent}, it "
                "is filled anew",
            )
        return rows

    def _sizes(self) -> tuple[tuple[str, int], ...]:
        return (".bin", self.bytes), (".done", self.groups * MARK.itemsize)

    def make(self) -> None:
        """Makes the files, which take no room yet."""
        for ending, size in self._sizes():
            with open(self.path.with_suffix(ending), "wb") as file:
                file.truncate(size)

    def check(self) -> None:
        """Raises `FileError` for a file of another size than the table has."""
        for ending, size in self._sizes():
            path = self.path.with_suffix(ending)
            found = path.stat().st_size if path.is_file() else -1
            if found != size:
                raise FileError(
                    path, f"should have {size:,} bytes, has {max(found, 0):,}; remove the "
                    f"directory {path.parent}, it is filled anew"
                )  # fmt: skip

    def done(self) -> Bool[np.ndarray, " g"]:
        """Which groups are complete."""
        return self.marks >= COMPLETE

    def write(self, groups: Iterable[int], rows: Sequence[np.ndarray]) -> None:
        """Writes the rows of some groups, then marks these, when the rows are on disk.

        Groups that another process has completed meanwhile stay as they are.
        """
        pairs = zip(map(int, groups), rows, strict=True)
        left = [(group, values) for group, values in pairs if self.marks[group] < COMPLETE]
        marks = []
        with disk_errors(self.path.parent, self.bytes):
            with open(self.path.with_suffix(".bin"), "r+b", buffering=0) as file:
                for group, values in left:
                    begin, end = self.first[group : group + 2].tolist()
                    if values.shape != (end - begin, *self.shape):
                        raise ValueError(f"group {group}: rows {values.shape}")
                    stored = np.ascontiguousarray(values, DTYPES[self.dtype])
                    marks.append(_mark(stored))
                    data = memoryview(stored.tobytes())
                    _write_all(file.fileno(), data, begin * self.row_bytes)
                os.fsync(file.fileno())
            with open(self.path.with_suffix(".done"), "r+b", buffering=0) as file:
                for (group, _), mark in zip(left, marks, strict=True):
                    _write_all(file.fileno(), memoryview(mark.tobytes()), group * MARK.itemsize)


@dataclasses.dataclass(frozen=True)
class PrefixCache:
    """The two tables of a cache. Groups of frames are clips, groups of captions are captions.

    Attributes:
      clip_captions: the first caption of each clip, and the number of all.
    """

    directory: pathlib.Path
    frames: Table
    text: Table
    clip_captions: Int[np.ndarray, " g"]

    @classmethod
    def of(
        cls,
        root: str | os.PathLike[str],
        key: Mapping[str, Any],
        records: Records,
        most_frames: int,
        shapes: tuple[tuple[int, ...], tuple[int, ...]],
        dtype: str,
    ) -> PrefixCache:
        """The cache below `root` of what `key` describes, which need not be there yet.

        most_frames: of a clip that training reads.
        shapes: of a row of frames, and of captions.
        """
        text = json.dumps([key, shapes, dtype], sort_keys=True)
        directory = pathlib.Path(root) / hashlib.sha256(text.encode()).hexdigest()[:24]
        frames = np.minimum(np.asarray(records.frame_counts, np.int64), most_frames)
        captions = np.array([len(captions) for captions in records.captions], np.int64)
        each = np.ones(int(captions.sum()), np.int64)
        firsts = [np.concatenate([[0], np.cumsum(counts)]) for counts in (frames, each, captions)]
        of_frames, of_text = (
            Table(directory / name, first, tuple(shape), dtype)
            for name, first, shape in zip((FRAMES, TEXT), firsts, shapes, strict=False)
        )
        return cls(directory, of_frames, of_text, firsts[-1])

    @property
    def bytes(self) -> int:
        """Bytes of the tables when they are full."""
        return self.frames.bytes + self.text.bytes

    def open(self, key: Mapping[str, Any]) -> None:
        """Makes the cache, empty, unless it is there.

        Raises:
          UserError: the disk has no room for it, refuses it, or a file is damaged.
        """
        if not self.directory.exists():
            self._make(key)
        path = self.directory / DESCRIPTION
        try:
            found, _ = unsealed(read_json(path), path)
        except FileNotFoundError as error:
            raise FileError(path, "is missing; remove the directory") from error
        if found["key"] != json.loads(json.dumps(key)):
            raise FileError(path, "describes another cache; remove the directory")
        for table in (self.frames, self.text):
            table.check()

    def _make(self, key: Mapping[str, Any]) -> None:
        free = free_bytes(self.directory)
        if self.bytes > free:
            raise UserError(
                f"config.data.cache='prefix': {self.directory.parent} needs {self.bytes:,} bytes "
                f"and has {free:,}; make room, set config.data.cache_dtype='bfloat16', or choose "
                "another config.data.cache_dir"
            )
        with disk_errors(self.directory, self.bytes):
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            scratch = pathlib.Path(
                tempfile.mkdtemp(prefix=f".{self.directory.name}.", dir=self.directory.parent)
            )
            try:
                for table in (self.frames, self.text):
                    dataclasses.replace(table, path=scratch / table.path.name).make()
                write_json(scratch / DESCRIPTION, sealed({"key": key}))
                os.rename(scratch, self.directory)
            except OSError:
                if not self.directory.exists():  # else another process was faster
                    raise
            finally:
                shutil.rmtree(scratch, ignore_errors=True)


def _mark(rows: np.ndarray) -> np.ndarray:
    """The mark of a complete group with these rows."""
    return np.array(COMPLETE + zlib.crc32(rows.view(np.uint8).data), MARK)


def _write_all(file: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written
