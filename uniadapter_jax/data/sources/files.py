"""Finding annotation and media files in the layouts that people really have."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from uniadapter_jax.data.sources import text_files
from uniadapter_jax.errors import UserError

VIDEO_EXTENSIONS = (
    *(".mp4", ".webm", ".avi", ".mkv", ".mov"),
    *(".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".gif"),
)
PICTURE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class Tree:
    """The files below a directory, listed once; links to directories are followed, loops are not.

    All paths are relative to `root`. Where several files answer, the order of extensions decides,
    then the shortest path, then the alphabet, so the answer is the same on any machine.
    """

    def __init__(self, root: str):
        if not os.path.isdir(root):
            raise UserError(f"--input={root} is not a directory")
        self.root = root
        self.paths = sorted(_walk(root), key=lambda path: (path.count(os.sep), path))
        self._by_name: dict[str, list[str]] = {}
        for path in self.paths:
            self._by_name.setdefault(os.path.basename(path), []).append(path)

    def find(self, *names: str) -> str | None:
        """The first file with one of these names."""
        for name in names:
            if found := self._by_name.get(name):
                return found[0]
        return None

    def ending_with(self, tail: str) -> str | None:
        """The first file whose path ends with the path segments of `tail`."""
        tail = os.path.normpath(tail)
        for path in self._by_name.get(os.path.basename(tail), ()):
            if path == tail or path.endswith(os.sep + tail):
                return path
        return None

    def locate(self, path: str) -> str:
        """The file that annotations call `path`: by its folders, else by name; `path` if neither.

        Pictures lie in folders of many names, so those above the ones in `path` do not count.
        """
        path = os.path.normpath(path)
        return self.ending_with(path) or self.ending_with(os.path.basename(path)) or path

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
    """Reads the fields of annotation records; a missing or mistyped one names file and record."""

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
