"""Captions in files beside videos and pictures that have their names.

    NAME.txt            a caption a line
    NAME.srt, NAME.vtt  subtitles: each is a clip of its own, with start and end
    NAME.csv, NAME.tsv  a table with a header: caption, and start and end in seconds if there are
                        moments

The suffix may be in capitals, and the two names in different forms of Unicode (NFC, NFD).
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError
from uniadapter_jax.data.sources import text_files
from uniadapter_jax.data.sources.item import clean_text

_CUE = re.compile(
    r"(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{3})\s*-->\s*(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{3})"
)
_TAG = re.compile(r"<[^>]*>|\{\\[^}]*\}")  # of WebVTT and SubRip


class Moment(NamedTuple):
    """Captions of a file, or of a part of it in seconds."""

    captions: tuple[str, ...]
    start: float | None = None
    end: float | None = None


class CaptionFiles:
    """The caption files among the paths of a folder, by the names that they share with media."""

    def __init__(self, root: str, paths: Iterable[str]):
        self._root = root
        self._files: dict[str, list[str]] = {}
        for path in paths:
            if _suffix(path) in READERS:
                self._files.setdefault(_name(path), []).append(path)

    def moments(self, medium: str) -> list[Moment]:
        """What the file beside a medium says of it; a moment without captions if there is none."""
        beside = [os.path.join(self._root, path) for path in self._files.get(_name(medium), ())]
        if len(beside) > 1:
            raise UserError(f"{' and '.join(beside)} are about one file: keep one of them")
        if not beside:
            return [Moment(())]
        return list(READERS[_suffix(beside[0])](beside[0]))

    def without_medium(self, media: Iterable[str]) -> list[str]:
        """The caption files that have the name of none of these media."""
        names = set(map(_name, media))
        return sorted(p for name, files in self._files.items() if name not in names for p in files)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _name(path: str) -> str:
    return unicodedata.normalize("NFC", os.path.splitext(path)[0])


def _lines(path: str) -> Iterator[Moment]:
    yield Moment(tuple(text for text in map(clean_text, text_files.read_names(path)) if text))


def _cues(path: str) -> Iterator[Moment]:
    """The subtitles of a file, as moments with one caption."""
    found = False
    for block in re.split(r"\r?\n\r?\n", text_files.read_text(path)):
        times = _CUE.search(block)
        text = clean_text(" ".join(_TAG.sub("", block[times.end() :]).split()) if times else "")
        if times and text:
            found = True
            yield Moment((text,), _seconds(times.groups()[:4]), _seconds(times.groups()[4:]))
    if not found:
        raise FileError(path, "no subtitle with times and text is in it")


def _seconds(clock: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, thousandths = (int(part or 0) for part in clock)
    return hours * 3600 + minutes * 60 + seconds + thousandths / 1000


def _table(path: str) -> Iterator[Moment]:
    """A table's captions: those without times together, the others as moments."""
    delimiter = "\t" if path.lower().endswith(".tsv") else ","
    header = text_files.read_text(path).partition("\n")[0]
    timed = "start" in header and "end" in header
    columns = ("caption", "start", "end") if timed else ("caption",)
    plain: list[str] = []
    moments: list[Moment] = []
    for row, (caption, *times) in enumerate(
        text_files.read_columns(path, *columns, delimiter=delimiter), 1
    ):
        if not any(times):
            plain.append(clean_text(caption))
            continue
        try:
            start, end = map(float, times)
        except ValueError as error:
            raise FileError(path, f"record {row}: start and end are seconds: {times}") from error
        if not 0 <= start < end:
            raise FileError(path, f"record {row}: {start:g} to {end:g} is no moment")
        moments.append(Moment((clean_text(caption),), start, end))
    if plain or not moments:
        yield Moment(tuple(filter(None, plain)))
    yield from moments


READERS: dict[str, Callable[[str], Iterator[Moment]]] = {
    ".txt": _lines,
    ".srt": _cues,
    ".vtt": _cues,
    ".csv": _table,
    ".tsv": _table,
}
