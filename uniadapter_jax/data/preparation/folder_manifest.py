"""Keeps the manifest of a folder up to date, unless somebody has edited it.

A copy of what was written last lies beside it, as `.manifest.jsonl.written`. A manifest that equals
its copy was not edited: it is made anew from what the folder has now, and clips that stay keep
their ids. One that differs stays as it is.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import write_whole
from uniadapter_jax.common.terminal import count_of
from uniadapter_jax.data.preparation.folder import (
    SPLITS,
    FolderContent,
    Record,
    identity_of,
    read_folder,
)
from uniadapter_jax.data.sources.manifest import json_lines


class Changes(NamedTuple):
    """The numbers of files that came, went, or got other captions since a manifest was written."""

    new: int
    gone: int
    captions: int
    same: int

    @classmethod
    def since(
        cls, old: Iterable[Record], new: Iterable[Record], edited: Iterable[Record]
    ) -> Changes:
        """The changes from `old` to `new`, without those that `edited` has, too."""
        before, now, there = _by_path(old), _by_path(new), _by_path(edited)
        stay = before.keys() & now.keys()
        changed = sum(before[path] != now[path] != there.get(path) for path in stay)
        came = len(now.keys() - before.keys() - there.keys())
        gone = len((before.keys() - now.keys()) & there.keys())
        return cls(came, gone, changed, len(stay) - changed)

    def __str__(self) -> str:
        """The numbers that are not 0, in words; "" where nothing has changed."""
        new = count_of(self.new, "new file")
        told = {new: self.new, f"{self.gone} gone": self.gone}
        told[f"other captions for {self.captions}"] = self.captions
        return ", ".join(words for words, number in told.items() if number)


def update_manifest(
    folder: str, path: str, *, overwrite: bool = False, again: str = "--overwrite"
) -> list[str]:
    """Brings the manifest of `folder` up to date, or writes it; returns lines for people.

    Args:
      overwrite: whether a manifest that was edited is replaced, too.
      again: the command that does so, for people.

    Raises:
      UserError: something is wrong with the folder, or the manifest has none of its files.
    """
    base = os.path.dirname(os.path.abspath(path))
    there, written = _content(path), _content(_copy_of(path))
    old = [] if there is None or overwrite else _records(_copy_of(path) if written else path)
    content = read_folder(folder, base, _known(old))
    text = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in content.records).encode()
    if there is None or overwrite:
        _write(path, text)
        lines = [*_counts(content), f"wrote {path}; look through it, and edit it where it is wrong"]
        return [*lines, *content.notes]
    changes = Changes.since(old, content.records, _records(path))
    if there == text:
        if written != text:
            with contextlib.suppress(UserError):  # a folder may be read-only; nothing changes in it
                write_whole(_copy_of(path), text)
        return [f"{path} is up to date", *content.notes]
    if there != written:
        told = f"{path} was written or edited by hand, and stays as it is"
        if str(changes):
            told += f"; {folder} differs from it: {changes}. To read that again: {again}"
        return [told, *content.notes]
    if not changes.same + changes.captions:
        raise UserError(f"{path} has none of the files in {folder}; to replace it: {again}")
    _write(path, text)
    told = f"{path} is brought up to date: {changes or 'written in another way'}"
    return [told, *_counts(content), *content.notes]


def _copy_of(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.written")


def _content(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _records(path: str) -> list[Record]:
    """The lines of a manifest that name a file; what is wrong with others, its reader says."""
    lines = (record for _, record in json_lines(path, []))
    return [record for record in lines if isinstance(record, dict) and _names_a_file(record)]


def _names_a_file(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("path"), str) and isinstance(record.get("id"), str)


def _known(records: Iterable[Record]) -> dict[str, str]:
    """The ids of files by their paths; none of those that have several, or that share one."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for record in records:
        found[record["path"]].add(identity_of(record))
    counts = collections.Counter(identity for ids in found.values() for identity in ids)
    single = {path: next(iter(ids)) for path, ids in found.items() if len(ids) == 1}
    return {path: identity for path, identity in single.items() if counts[identity] == 1}


def _by_path(records: Iterable[Record]) -> dict[str, list[tuple[Any, ...]]]:
    found: dict[str, list[tuple[Any, ...]]] = collections.defaultdict(list)
    for record in records:
        moment = (record.get("start"), record.get("end"), record.get("captions") or [])
        found[record["path"]].append(moment)
    return found


def _write(path: str, text: bytes) -> None:
    with disk_errors(path, len(text)):
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    # The copy comes second: after a kill between the two the manifest equals what the folder has.
    write_whole(path, text)
    write_whole(_copy_of(path), text)


def _counts(content: FolderContent) -> Sequence[str]:
    """A line for each split: its clips and captions."""
    lines = []
    for split in SPLITS:
        captions = [len(x["captions"]) for x in content.records if x["split"] == split]
        if captions:
            lines.append(f"{split}: {len(captions)} clips, {sum(captions)} captions")
    return lines
