"""Encodes the files of a folder, and writes them to an index part by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.progress import Progress
from uniadapter_jax.inference.adapted import AdaptedBackbone
from uniadapter_jax.inference.clip_files import FileClip
from uniadapter_jax.inference.search import parts as stored
from uniadapter_jax.inference.search.folder import Changes, File, Reader
from uniadapter_jax.inference.search.known import Known, Place
from uniadapter_jax.inference.search.parts import Stamp, Store

CLIPS = 128  # and files, of a part; a file is never cut
FRAMES = 256  # that are pixels at one time


def write_changes(
    store: Store,
    model: AdaptedBackbone,
    dtype: str,
    reader: Reader,
    todo: Changes,
    known: Known,
    say: Callable[[str], None],
) -> None:
    """Writes parts with all changes of a folder; `say` is told the progress.

    A file with the content of a known one gets its rows, so that copies tie to the bit.
    """
    number = max(store.numbers(), default=-1) + 1
    part = _Part(model, dtype, known)
    part.lines += [stored.gone_line(path) for path in todo.gone]
    progress, bad = Progress("index", len(todo.fresh), "files", write=say), 0
    for file in reader.files(todo.fresh, known):
        bad += not part.add(file, reader)
        if part.full:
            store.write(number, *part.finished())
            part.release(np.asarray(store.rows(number)))
            number, part = number + 1, _Part(model, dtype, known)
        progress.note = f", {bad} bad" if bad else ""
        progress.advance(1)
    if part.lines or part.waiting:
        store.write(number, *part.finished())
    reader.reading.end()
    if progress.done:
        progress.show()


class _Waiting(NamedTuple):
    """A clip that is not encoded yet."""

    path: str
    stamp: Stamp
    clip: FileClip


class _Part:
    """Rows and lines of a part in the making."""

    def __init__(self, model: AdaptedBackbone, dtype: str, known: Known):
        self.model, self.dtype, self.known = model, dtype, known
        self.lines: list[dict[str, Any]] = []
        self.waiting: list[_Waiting] = []
        self._rows: list[np.ndarray] = []
        self._count = 0  # rows

    @property
    def full(self) -> bool:
        return len(self.lines) + len(self.waiting) >= CLIPS

    def add(self, file: File, reader: Reader) -> bool:
        """Takes all clips of a file; returns whether it is sound."""
        path, stamp, done = file.path, file.stamp, 0
        if file.bad is None and self._copied(path, stamp):
            return True
        if file.skipped:
            file = reader.read(path)
        while file.bad is None:
            self.waiting += [_Waiting(path, stamp, clip) for clip in file.clips]
            self._encode(FRAMES)
            done += len(file.clips)
            if done >= file.count:
                return True
            file = reader.read(path, done)  # a long film goes on
        self.lines = [line for line in self.lines if line["path"] != path]
        self.waiting = [waiting for waiting in self.waiting if waiting.path != path]
        self.known.forget(stamp.digest)
        self.lines.append(stored.bad_line(file.bad, stamp))
        return False

    def _copied(self, path: str, stamp: Stamp) -> bool:
        """Whether a file's content is known; then its rows are taken."""
        waits = any(waiting.stamp.digest == stamp.digest for waiting in self.waiting)
        if not waits and stamp.digest not in self.known:
            return False
        self._encode(1)  # also because clips of a file stay side by side
        same = dict(self.known.get(stamp.digest))
        for place, rows in same.items():
            self._enter(path, stamp, place, rows)
        return bool(same)

    def release(self, rows: np.ndarray) -> None:
        """Lets go of the rows, which are on disk now and are given as they are there."""
        for line in self.lines:
            if "row" in line:
                place = line["start"], line["end"], line["whole"]
                there = rows[line["row"] : line["row"] + line["rows"]]
                self.known.put(line["digest"], line["path"], place, there)

    def finished(self) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """All rows and lines."""
        self._encode(1)
        empty = np.empty((0, self.model.config.embed), self.dtype)
        return np.concatenate([empty, *self._rows]), stored.in_order(self.lines)

    def _encode(self, least: int) -> None:
        """Encodes waiting clips, as long as they have so many frames."""
        while sum(len(waiting.clip.frames) for waiting in self.waiting) >= least:
            frames = np.cumsum([len(waiting.clip.frames) for waiting in self.waiting])
            count = int(np.searchsorted(frames, FRAMES)) + 1
            now, self.waiting = self.waiting[:count], self.waiting[count:]
            for waiting, rows in zip(now, self._encoded(now), strict=True):
                self._enter(waiting.path, waiting.stamp, waiting.clip.place, rows)

    def _enter(self, path: str, stamp: Stamp, place: Place, rows: np.ndarray) -> None:
        if not np.isfinite(rows).all():
            raise UserError(
                f"the features of {path!r} are not finite, so scores would mean nothing. Look for "
                "NaN in the weights, or for --dtype=float16 with features beyond 65,504"
            )
        name = stored.clip_id(path, *place)
        clip = stored.Clip(name, path, *place, self._count, len(rows))
        self.lines.append(stored.clip_line(clip, stamp))
        self.known.put(stamp.digest, path, place, rows)
        self._rows.append(rows)
        self._count += len(rows)

    def _encoded(self, clips: Sequence[_Waiting]) -> list[np.ndarray]:
        """The rows of each clip; pictures apart, which save work where films have many frames."""
        single = np.array([len(waiting.clip.frames) == 1 for waiting in clips])
        rows: list[np.ndarray] = [np.empty(0)] * len(clips)
        for chosen in (np.flatnonzero(single), np.flatnonzero(~single)):
            if len(chosen):
                pixels = self.model.pixels_of([clips[i].clip for i in chosen.tolist()])
                found = self.model.clip_rows(*self.model.media_features(*pixels))
                for i, of_clip in zip(chosen.tolist(), found, strict=True):
                    rows[i] = of_clip.astype(self.dtype)
        return rows
