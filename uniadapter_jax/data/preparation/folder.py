"""A manifest of a folder of one's own videos and pictures, which people can read and edit.

Every video and picture below the folder becomes a line of `data.sources.manifest`; its id is its
path without suffix. Captions come from files beside it that have its name:

    NAME.txt            a caption a line
    NAME.srt, NAME.vtt  subtitles: each is a clip of its own, with start and end
    NAME.csv, NAME.tsv  a table with a header: caption, and start and end in seconds if there are
                        moments

A folder `train`, `val` or `test` at the top names the split of what it holds. Elsewhere the hash
of the path decides: 8 of 10 files train, one validates, one tests. Moments of a file stay together.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError, write_whole
from uniadapter_jax.data.sources import text_files
from uniadapter_jax.data.sources.files import VIDEO_EXTENSIONS, Tree
from uniadapter_jax.data.sources.item import clean_text

PICTURE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"),
    *(".heic", ".heif", ".avif"),
)
MEDIA = frozenset((*VIDEO_EXTENSIONS, *PICTURE_EXTENSIONS)) - {""}
SPLITS = ("train", "val", "test")
_OF_TEN = ("test", "val", *["train"] * 8)  # by the hash of the path
_CUE = re.compile(
    r"(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{3})\s*-->\s*(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{3})"
)
_TAG = re.compile(r"<[^>]*>|\{\\[^}]*\}")  # of WebVTT and SubRip


class Moment(NamedTuple):
    """Captions of a file, or of a part of it in seconds."""

    captions: tuple[str, ...]
    start: float | None = None
    end: float | None = None


def write_manifest(folder: str, path: str, *, overwrite: bool = False) -> list[str]:
    """Writes the manifest of `folder` to `path`; returns what it holds, in lines for people.

    Raises:
      UserError: there is no video or picture, two have one id, a caption file cannot be read, or
        the manifest exists and may not be replaced.
    """
    if os.path.exists(path) and not overwrite:
        raise UserError(f"{path} exists, and may have been edited; --overwrite replaces it")
    tree = Tree(folder)
    lines: list[str] = []
    counts = {split: [0, 0] for split in SPLITS}  # clips, captions
    base = os.path.dirname(os.path.abspath(path))
    for media, identity in _media(tree).items():
        split = _split(media)
        where = os.path.relpath(os.path.join(os.path.abspath(folder), media), base)
        moments = _moments(tree, media)
        for moment in moments:
            record: dict[str, Any] = {"id": _named(identity, moment), "path": where, "split": split}
            if moment.start is not None:
                record |= {"start": moment.start, "end": moment.end}
            record["captions"] = list(moment.captions)
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
            counts[split][0] += 1
            counts[split][1] += len(moment.captions)
    with disk_errors(path, sum(map(len, lines))):
        os.makedirs(base, exist_ok=True)
    write_whole(path, "".join(lines))
    told = [f"{split}: {n} clips, {c} captions" for split, (n, c) in counts.items() if n]
    return [*told, f"wrote {path}; look through it, and edit it where it is wrong"]


def _media(tree: Tree) -> dict[str, str]:
    """{path: id} of all videos and pictures, in the order of their paths."""
    paths = sorted(p for p in tree.paths if os.path.splitext(p)[1].lower() in MEDIA)
    if not paths:
        raise UserError(f"{tree.root} holds no video and no picture (by suffix: .mp4, .jpg, ...)")
    for path in paths:
        if path.encode("utf-8", "replace").decode() != path:
            raise UserError(f"{os.path.join(tree.root, path)!a}: rename it: its name is not UTF-8")
    names = {path: clean_text(os.path.splitext(path)[0]) for path in paths}
    counts = collections.Counter(names.values())
    chosen: dict[str, str] = {}  # by id
    for path, name in names.items():
        identity = name if counts[name] == 1 else clean_text(path)
        if identity in chosen:
            raise UserError(f"{chosen[identity]!r} and {path!r} would have one id; rename one")
        chosen[identity] = path
    return {path: identity for identity, path in chosen.items()}


def _split(media: str) -> str:
    top = media.split(os.sep)[0].lower()
    if top in SPLITS:
        return top
    place = hashlib.sha256(media.encode("utf-8", "surrogateescape")).digest()
    return _OF_TEN[int.from_bytes(place[:8], "big") % len(_OF_TEN)]


def _named(identity: str, moment: Moment) -> str:
    if moment.start is None:
        return identity
    return f"{identity}@{moment.start:g}-{moment.end:g}"


def _moments(tree: Tree, media: str) -> list[Moment]:
    """What the files beside a medium say of it; one moment without captions if there are none."""
    stem = os.path.join(tree.root, os.path.splitext(media)[0])
    readers = {".txt": _lines, ".srt": _cues, ".vtt": _cues, ".csv": _table, ".tsv": _table}
    beside = [stem + suffix for suffix in readers if os.path.isfile(stem + suffix)]
    if len(beside) > 1:
        raise UserError(f"{' and '.join(beside)} are about one file: keep one of them")
    if not beside:
        return [Moment(())]
    return list(readers[os.path.splitext(beside[0])[1]](beside[0]))


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
    delimiter = "\t" if path.endswith(".tsv") else ","
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
