"""An index on disk: parts of rows and table lines, each whole or absent.

    index.json                  what the rows mean; names the generation that counts
    parts-G/000007.npy          rows, float32 or float16 "r c"
    parts-G/000007.jsonl        a JSON line for each clip, bad file and removed file

A part counts once its .jsonl is there, which is renamed into place after its .npy is on disk. What
a later part says about a path replaces all that earlier ones say. Rows that nothing names any more
stay until the parts are gathered into a new generation.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.files import FileError, parse_line, read_lines, sync_directory

GATHERED = 65_536  # clips of a part that was gathered
_LINE_BYTES = 1 << 16


class Stamp(NamedTuple):
    """What tells whether a file has changed."""

    size: int
    mtime_ns: int
    digest: str


class Clip(NamedTuple):
    """A line of the table: a clip and its rows in its part.

    Attributes:
      path: below the indexed folder.
      start, end: seconds; None of a picture.
      whole: whether it is all of its file.
      row, rows: the first row, and how many there are.
    """

    id: str
    path: str
    start: float | None
    end: float | None
    whole: bool
    row: int
    rows: int


class Bad(NamedTuple):
    """A file that gives no clip, and why."""

    path: str
    reason: str
    detail: str


class Part(NamedTuple):
    """Rows with the clips that have them."""

    rows: np.ndarray
    clips: list[Clip]


class Table(NamedTuple):
    """All that counts in an index: its parts, files that were read, and those that are bad."""

    parts: list[Part]
    files: dict[str, Stamp]
    bad: dict[str, Bad]
    dead: int  # rows that nothing names


def clip_id(path: str, start: float | None, end: float | None, whole: bool) -> str:
    """A name of a clip for addresses: the same whenever the same seconds are indexed."""
    text = json.dumps([path, None if whole else [start, end]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def clip_line(clip: Clip, stamp: Stamp) -> dict[str, Any]:
    return {**clip._asdict(), **stamp._asdict()}


def bad_line(bad: Bad, stamp: Stamp) -> dict[str, Any]:
    return {**bad._asdict(), **stamp._asdict()}


def gone_line(path: str) -> dict[str, Any]:
    """Says that the file is no longer there."""
    return {"path": path, "gone": True}


def in_order(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a part by their paths: the same, whenever each was known."""
    return sorted(lines, key=lambda line: line["path"])


class Store:
    """The parts of one generation of an index."""

    def __init__(self, index: pathlib.Path, generation: int):
        self.folder = index / f"parts-{generation}"

    def numbers(self) -> list[int]:
        """The parts that count, in order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(file.stem) for file in self.folder.glob("[0-9]*.jsonl"))

    def write(self, number: int, rows: np.ndarray, lines: Iterable[Mapping[str, Any]]) -> None:
        """Writes a part; it counts at once or, if the process dies before, not at all."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        with disk_errors(self.folder, rows.nbytes + len(text)):
            self.folder.mkdir(exist_ok=True)
            for suffix, content in (("npy", rows), ("jsonl", text)):
                file = self.folder / f"{number:06d}.{suffix}"
                scratch = file.with_name(f".{file.name}.tmp")
                with scratch.open("wb") as output:
                    if isinstance(content, str):
                        output.write(content.encode())
                    else:
                        np.save(output, content)
                    output.flush()
                    os.fsync(output.fileno())
                scratch.replace(file)
                sync_directory(self.folder)

    def rows(self, number: int) -> np.ndarray:
        """The rows of a part, mapped into memory, not read."""
        file = self.folder / f"{number:06d}.npy"
        try:
            rows = np.load(file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise FileError(file, "is missing; index the folder into a new --output") from None
        except (ValueError, OSError, EOFError) as error:
            raise FileError(file, f"is damaged: {error}; index into a new --output") from error
        if rows.ndim != 2 or rows.dtype not in (np.float16, np.float32):
            raise FileError(file, f"is damaged: {rows.dtype} of shape {rows.shape}")
        return rows

    def lines(self, number: int) -> Iterator[tuple[str, Any]]:
        """(where it stands, line) of a part's table."""
        file = self.folder / f"{number:06d}.jsonl"
        for count, text in read_lines(file, _LINE_BYTES):
            try:
                yield f"{file}, line {count}", parse_line(text)
            except ValueError as error:
                raise FileError(file, f"line {count} is damaged: {error}") from error

    def read(self, width: int) -> Table:
        """The table of all parts, later ones first; raises `FileError` for a damaged one."""
        seen: set[str] = set()
        table = Table([], {}, {}, 0)
        dead = 0
        for number in reversed(self.numbers()):
            rows, here = self.rows(number), set()
            clips: list[Clip] = []
            if rows.shape[1] != width:
                raise FileError(self.folder, f"part {number} is {rows.shape[1]} wide, not {width}")
            for where, line in self.lines(number):
                path = _path(where, line)
                here.add(path)
                if path in seen or line.get("gone"):
                    continue
                _enter(where, line, clips, table, len(rows))
            seen |= here
            dead += len(rows) - sum(clip.rows for clip in clips)
            table.parts.append(Part(rows, clips))
        table.parts.reverse()
        return table._replace(dead=dead)


def gather(old: Store, new: Store, table: Table) -> None:
    """Writes what counts of a table as few large parts of a new generation."""
    shutil.rmtree(new.folder, ignore_errors=True)
    new.folder.mkdir()
    number = 0
    for several in _large(table.parts):
        rows = [part.rows[clip.row : clip.row + clip.rows] for part, clip in several]
        lines, row = [], 0
        for _, clip in several:
            lines.append(clip_line(clip._replace(row=row), table.files[clip.path]))
            row += clip.rows
        new.write(number, np.concatenate(rows), lines)
        number += 1
    bad = [bad_line(bad, table.files[path]) for path, bad in sorted(table.bad.items())]
    if bad or not number:
        width, dtype = (table.parts[0].rows.shape[1], table.parts[0].rows.dtype)
        new.write(number, np.empty((0, width), dtype), bad)


def _large(parts: Sequence[Part]) -> Iterator[list[tuple[Part, Clip]]]:
    """The clips in groups of `GATHERED` or a few more: those of a file stay together."""
    group: list[tuple[Part, Clip]] = []
    for part in parts:
        for _, clips in itertools.groupby(part.clips, lambda clip: clip.path):
            group += [(part, clip) for clip in clips]
            if len(group) >= GATHERED:
                yield group
                group = []
    if group:
        yield group


def _path(where: str, line: Any) -> str:
    if not isinstance(line, dict) or not isinstance(line.get("path"), str):
        raise FileError(where, "is damaged: it names no path")
    path = line["path"]
    if os.path.isabs(path) or os.pardir in path.split(os.sep) or "\0" in path:
        raise FileError(where, f"is damaged: {path[:80]!a} is no path below the folder")
    return path


def _enter(where: str, line: dict[str, Any], clips: list[Clip], table: Table, rows: int) -> None:
    """Enters a line that counts into the table."""
    try:
        stamp = Stamp(*(line[name] for name in Stamp._fields))
        if "reason" in line:
            bad = Bad(*(line[name] for name in Bad._fields))
            table.bad[bad.path] = bad
        else:
            clip = Clip(*(line[name] for name in Clip._fields))
            if not 0 <= clip.row < clip.row + clip.rows <= rows:
                raise ValueError(f"rows {clip.row} to {clip.row + clip.rows} of {rows}")
            if not all(t is None or type(t) in (int, float) for t in (clip.start, clip.end)):
                raise ValueError(f"from {clip.start!r:.40} to {clip.end!r:.40}")
            clips.append(clip)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(where, f"is damaged: {error!r}") from error
    table.files[line["path"]] = stamp


def clips_of(parts: Sequence[Part]) -> Iterator[Clip]:
    return itertools.chain.from_iterable(part.clips for part in parts)
