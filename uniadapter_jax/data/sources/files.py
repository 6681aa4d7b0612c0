"""Finds annotation and media files in the folder layouts that are common in practice."""

from __future__ import annotations

import collections
import dataclasses
import filecmp
import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.sources import near, text_files
from uniadapter_jax.data.sources.item import Item

# Suffixes that a clip's file may have, the preferred first; the format is read from the content.
VIDEO_EXTENSIONS = (
    *(".mp4", ".webm", ".avi", ".mkv", ".mov"),
    *(".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".gif"),
    *(".ts", ".mts", ".m2ts", ".3gp", ".ogv", ".asf", ".vob", ".f4v", ".mxf", ".nut", ".apng", ""),
)
# Names of folders that say nothing about their content, so that any data set may lie in them.
PLAIN_FOLDERS = frozenset(
    ("", "images", "image", "imgs", "img", "pictures", "photos", "jpg", "jpeg", "jpegs", "data")
)


_WORDS = re.compile(r"[\W_]+")


class Place(NamedTuple):
    """The path of a medium; if it does not exist, `hint` says which similar files do."""

    path: str
    hint: str = ""


class Tree:
    """The files below a directory, listed once; links to directories are followed, loops are not.

    All paths are relative to `root`. Among several matching files the order of extensions decides,
    then the shortest path, then the alphabet, so the choice is the same on any machine.
    """

    def __init__(self, root: str):
        if not os.path.isdir(root):
            raise UserError(f"--input={root} is not a directory")
        self.root = root
        self.paths = sorted(_walk(root), key=lambda path: (path.count(os.sep), path))
        self._by_name = _grouped(self.paths, os.path.basename)

    def find(self, *names: str) -> str | None:
        """The first file with one of these names."""
        for name in names:
            if paths := self._by_name.get(name):
                return paths[0]
        return None

    def ending_with(self, tail: str) -> str | None:
        """The first file whose path ends with the path segments of `tail`."""
        tail = os.path.normpath(tail)
        for path in self._by_name.get(os.path.basename(tail), ()):
            if _ends_with(path, tail):
                return path
        return None

    def place_pictures(self, items: Iterable[Item]) -> tuple[Item, ...]:
        """The items with annotated paths replaced by the paths of files, or with hints.

        A file that matches two annotated paths, unless both by their folders, is used for neither.
        """
        items = list(items)
        places = {path: self.locate(path) for path in {item.path for item in items}}
        claims = collections.Counter(place.path for place in places.values() if not place.hint)
        for path, place in places.items():
            if claims[place.path] > 1 and not _ends_with(place.path, path):
                hint = f"{near.told(path, [place.path])}, which other annotations name, too"
                places[path] = Place(path, hint)
        return tuple(_placed(item, places[item.path]) for item in items)

    def place_clips(self, items: Iterable[Item]) -> tuple[Item, ...]:
        """The items with names without suffix replaced by the paths of files, or with hints."""
        clips = self.by_stem(VIDEO_EXTENSIONS)
        return tuple(_placed(item, self._clip(item.path, clips)) for item in items)

    def locate(self, path: str) -> Place:
        """Finds the file that annotations call `path`.

        Folders above those in `path` do not matter. The last folder may be spelt differently
        (flickr30k_images, flickr30k), and if no folder has its name it may be missing or one of
        `PLAIN_FOLDERS`. If `path` has no folder, or the file's name repeats it (COCO_val2014_...),
        the file may lie in any. But all files that match must be copies of one.
        """
        path = os.path.normpath(path)
        folder, name = os.path.split(path)
        exact = self.ending_with(path)
        if exact and (folder or exact == path):
            return Place(exact)
        folder = _core(os.path.basename(folder))
        named = self._by_name.get(name, [])
        candidates = [other for other in named if self._may_be(other, folder, name)]
        if candidates and _same_bytes([os.path.join(self.root, c) for c in candidates]):
            return Place(candidates[0])
        return Place(path, self._hint(path, candidates or named))

    def _may_be(self, other: str, folder: str, name: str) -> bool:
        if not folder or folder in _WORDS.split(name.casefold()):
            return True
        parent = os.path.basename(os.path.dirname(other))
        if _core(parent) == folder:
            return True
        return folder not in self._folders and parent.casefold() in PLAIN_FOLDERS

    def _clip(self, stem: str, clips: Mapping[str, str]) -> Place:
        expected = os.path.join("videos", f"{stem}.mp4")
        if stem in clips:
            return Place(clips[stem])
        return Place(expected, self._hint(expected, []))

    def _hint(self, path: str, others: Sequence[str]) -> str:
        """Says which files are there instead of `path`; never empty."""
        if len(others) > 1:
            return f"{near.told(path, others)}; which is meant cannot be told"
        if not others:
            name = os.path.basename(path)
            others = self._by_folded.get(near.folded(name)) or self._by_stem.get(
                near.stem(name), []
            )
        return near.told(path, others) or "nothing of that name is there"

    @functools.cached_property
    def _folders(self) -> frozenset[str]:
        return frozenset(_core(os.path.basename(os.path.dirname(path))) for path in self.paths)

    @functools.cached_property
    def _by_folded(self) -> dict[str, list[str]]:
        return _grouped(self.paths, lambda path: near.folded(os.path.basename(path)))

    @functools.cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return _grouped(self.paths, lambda path: near.stem(os.path.basename(path)))

    def by_stem(self, extensions: tuple[str, ...]) -> dict[str, str]:
        """{file name without extension: path} of the files with these extensions."""
        rank = {extension: i for i, extension in enumerate(extensions)}
        best: dict[str, tuple[int, str]] = {}
        for path in self.paths:
            stem, extension = os.path.splitext(os.path.basename(path))
            if (r := rank.get(extension.lower())) is not None:
                if stem not in best or r < best[stem][0]:
                    best[stem] = (r, path)
        return {stem: path for stem, (_, path) in best.items()}

    def read_json(self, path: str) -> Any:
        return text_files.read_json(os.path.join(self.root, path))

    def read_names(self, path: str) -> list[str]:
        return text_files.read_names(os.path.join(self.root, path))

    def read_columns(self, path: str, *columns: str) -> list[tuple[str, ...]]:
        return text_files.read_columns(os.path.join(self.root, path), *columns)


def _grouped(paths: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(key(path), []).append(path)
    return groups


def _placed(item: Item, place: Place) -> Item:
    return dataclasses.replace(item, path=place.path, hint=place.hint)


def _ends_with(path: str, tail: str) -> bool:
    tail = os.path.normpath(tail)
    return path == tail or path.endswith(os.sep + tail)


def _core(folder: str) -> str:
    """A folder's name for comparisons: flickr30k_images and flickr30k are the same."""
    words = [word for word in _WORDS.split(folder.casefold()) if word]
    return "".join(word for word in words if word not in PLAIN_FOLDERS) or "".join(words)


def _same_bytes(paths: Sequence[str]) -> bool:
    """Whether all are copies of one file."""
    try:
        return all(filecmp.cmp(paths[0], other, shallow=False) for other in paths[1:])
    except OSError:
        return False


def _walk(root: str) -> Iterable[str]:
    seen: set[str] = set()
    for directory, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in files:
            yield os.path.relpath(os.path.join(directory, name), root)


class Fields:
    """Reads fields of annotation records; errors about a field name the file and the record."""

    def __init__(self, where: str):
        self.where = where

    def get(self, record: Any, key: str, kind: type, index: int | str = "") -> Any:
        place = f"{self.where}: record {index}" if index != "" else self.where
        if not isinstance(record, dict):
            raise UserError(f"{place}: expected an object, found {type(record).__name__}")
        if key not in record:
            raise UserError(f"{place}: no field {key!r}; there are {sorted(record)[:12]}")
        value = record[key]
        if not isinstance(value, kind):
            raise UserError(
                f"{place}: field {key!r} should be {kind.__name__}, is {type(value).__name__}"
            )
        return value
