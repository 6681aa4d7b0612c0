"""Reads a folder of one's own videos and pictures as lines of a manifest.

Every video and picture below the folder becomes a line of `data.sources.manifest`; its id is its
path without suffix. Captions come from files beside it that have its name (see `captions`). Names
that begin with a dot are hidden, those of folders too: what they hold is passed over.

A folder `train`, `val` or `test` at the top names the split of what it holds. Elsewhere the hash
of the path decides: 8 of 10 files train, one validates, one tests. Moments of a file stay together.
"""

from __future__ import annotations

import collections
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.preparation.captions import CaptionFiles, Moment
from uniadapter_jax.data.sources.files import VIDEO_EXTENSIONS, Tree
from uniadapter_jax.data.sources.item import clean_text

PICTURE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"),
    *(".heic", ".heif", ".avif"),
)
MEDIA = frozenset((*VIDEO_EXTENSIONS, *PICTURE_EXTENSIONS)) - {""}
SPLITS = ("train", "val", "test")
SHOWN = 5  # names in a line
SHOWN_ERRORS = 20
_OF_TEN = ("test", "val", *["train"] * 8)  # by the hash of the path

Record = dict[str, Any]  # a line of a manifest


class FolderContent(NamedTuple):
    """The lines of a folder's manifest, and what people should know about the folder."""

    records: list[Record]
    notes: list[str]


def shown_paths(tree: Tree) -> list[str]:
    """The files of a tree that are not hidden, in the order of their paths."""
    return sorted(path for path in tree.paths if not f"{os.sep}{path}".count(f"{os.sep}."))


def media_paths(tree: Tree) -> list[str]:
    """The videos and pictures of a tree that are not hidden, by suffix."""
    return [path for path in shown_paths(tree) if os.path.splitext(path)[1].lower() in MEDIA]


def read_folder(folder: str, base: str, known: Mapping[str, str]) -> FolderContent:
    """Reads a folder for a manifest in the directory `base`.

    Args:
      known: ids that files had before, by their path from `base`; they keep them.

    Raises:
      UserError: there is no video or picture; or all that is wrong with names and caption files.
    """
    if not os.path.isdir(folder):
        raise UserError(f"--from-folder={folder} is not a directory")
    tree = Tree(folder)
    media, captions = media_paths(tree), CaptionFiles(folder, shown_paths(tree))
    if not media:
        raise UserError(f"{folder} holds no video and no picture (by suffix: .mp4, .jpg, ...)")
    errors = [
        f"{os.path.join(folder, path)!a}: rename it: its name is not UTF-8"
        for path in media
        if not _is_utf8(path)
    ]
    readable = [path for path in media if _is_utf8(path)]
    wheres = {p: os.path.relpath(os.path.join(os.path.abspath(folder), p), base) for p in readable}
    before = {path: known[where] for path, where in wheres.items() if where in known}
    records: list[Record] = []
    for path, identity in _identities(readable, before, errors):
        try:
            moments = captions.moments(path)
        except UserError as error:
            if str(error) not in errors:  # two media may have one name
                errors.append(str(error))
            continue
        records += [_record(identity, wheres[path], _split(path), moment) for moment in moments]
    if errors:
        raise _all_of(errors, folder)
    empty = [path for path in media if _is_empty(os.path.join(folder, path))]
    alone = captions.without_medium(media)
    notes = [
        *_note(empty, "1 file is empty (0 bytes)", "{} files are empty (0 bytes)"),
        *_note(
            alone,
            "1 caption file belongs to no clip, since none has its name",
            "{} caption files belong to no clip, since none has their name",
        ),
    ]
    return FolderContent(records, notes)


def _is_utf8(path: str) -> bool:
    return path.encode("utf-8", "replace").decode() == path


def _is_empty(path: str) -> bool:
    try:
        return os.path.getsize(path) == 0
    except OSError:  # decoding says what is wrong with it
        return False


def _all_of(errors: Sequence[str], folder: str) -> UserError:
    if len(errors) == 1:
        return UserError(errors[0])
    tail = [f"and {len(errors) - SHOWN_ERRORS} more"] if len(errors) > SHOWN_ERRORS else []
    lines = [f"{len(errors)} things in {folder} are wrong:", *errors[:SHOWN_ERRORS], *tail]
    return UserError("\n  ".join(lines))


def _note(paths: Sequence[str], one: str, several: str) -> Iterator[str]:
    if paths:
        names = ", ".join(path if _is_utf8(path) else ascii(path) for path in paths[:SHOWN])
        more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        told = one if len(paths) == 1 else several.format(len(paths))
        yield f"{told}: {names}{more}"


def _identities(
    paths: Sequence[str], known: Mapping[str, str], errors: list[str]
) -> Iterator[tuple[str, str]]:
    """(path, id) of media; those that are known keep their ids. Two with one id are an error."""
    names = {path: clean_text(os.path.splitext(path)[0]) for path in paths}
    counts = collections.Counter(names.values())
    chosen = {identity: path for path, identity in known.items()}
    for path, name in names.items():
        identity = known.get(path)
        if identity is None:
            alone = counts[name] == 1 and name not in chosen
            identity = name if alone else clean_text(path)
        if chosen.setdefault(identity, path) != path:
            errors.append(f"{chosen[identity]!r} and {path!r} would have one id; rename one")
            continue
        yield path, identity


def _split(media: str) -> str:
    top = media.split(os.sep)[0].lower()
    if top in SPLITS:
        return top
    place = hashlib.sha256(media.encode("utf-8", "surrogateescape")).digest()
    return _OF_TEN[int.from_bytes(place[:8], "big") % len(_OF_TEN)]


def _record(identity: str, where: str, split: str, moment: Moment) -> Record:
    record: Record = {"id": identity, "path": where, "split": split}
    if moment.start is not None and moment.end is not None:
        record["id"] += _range(moment.start, moment.end)
        record |= {"start": moment.start, "end": moment.end}
    return record | {"captions": list(moment.captions)}


def _range(start: float, end: float) -> str:
    return f"@{start:g}-{end:g}"


def identity_of(record: Mapping[str, Any]) -> str:
    """The id of the file that a line is of: the line's own, without the range of a moment."""
    start, end = record.get("start"), record.get("end")
    if isinstance(start, int | float) and isinstance(end, int | float):
        return record["id"].removesuffix(_range(start, end))
    return record["id"]
