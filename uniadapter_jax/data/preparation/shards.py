"""Work shards: the decoded clips of a few items, kept until the records are assembled.

A shard is complete or absent: it is written under a temporary name, synced and renamed, and ends
with the SHA-256 of its content, so that a damaged one is detected and made again.

Every clip has a key, a hash of everything its frames depend on: path, size and time of the media
file, the range, the settings, the decoders' versions. A shard is named after the keys of its clips
and holds them, so clips of other settings or files are never used, and those that stay the same
are found again in whatever shard they are. The division of items into shards depends neither on
the number of workers nor on what is done already, so several hosts agree on it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.files import FileError, open_regular, sync_directory
from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.data.preparation.clips import Clip, PrepareSettings, decoder_versions, read_clip
from uniadapter_jax.data.sources import near
from uniadapter_jax.data.sources.item import Item

ITEMS_PER_SHARD = 16
FORMAT = 3  # raise it when the content of a shard, or what decoding gives, changes its meaning
_LENGTH = struct.Struct("<I")
_DIGEST = hashlib.sha256().digest_size  # bytes at the end of the file


@dataclasses.dataclass(frozen=True)
class Shard:
    """Items of the source and the file that their clips go to.

    Attributes:
      indices: of the items in the source.
      keys: of the items.
      done_before: {position here: (file, position there)} of clips that another shard holds.
    """

    indices: tuple[int, ...]
    items: tuple[Item, ...]
    keys: tuple[str, ...]
    path: str
    done_before: Mapping[int, tuple[str, int]] = dataclasses.field(default_factory=dict)

    @property
    def done(self) -> bool:
        return os.path.exists(self.path)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result for one item: a clip, or the reason why there is none."""

    reason: str = ""
    detail: str = ""
    clip: Clip | None = None
    sizes: tuple[int, ...] = ()  # bytes of each frame, when read from a shard
    key: str = ""  # of the item, when read from a shard


def item_keys(items: Iterable[Item], root: str, settings: PrepareSettings) -> list[str]:
    """The key of every item: equal where decoding would give the same frames, or the same error.

    A file counts as the same while path, size and time of change are. Its content is not read,
    which would take as long as decoding does where disks are slow.
    """
    facts = {"format": FORMAT, "settings": settings.of_frames(), "decoder": decoder_versions()}
    shared = hash_json(facts)
    return [
        hash_json([shared, item.path, item.start, item.end, *_stat(root, item)])[:32]
        for item in items
    ]


def plan_shards(
    items: Sequence[Item],
    root: str,
    settings: PrepareSettings,
    directory: str,
    wanted: Sequence[int] | None = None,
) -> list[Shard]:
    """Divides the items, or those with the indices `wanted`, into shards in `directory`."""
    indices = range(len(items)) if wanted is None else wanted
    keys = item_keys((items[i] for i in indices), root, settings)
    shards = []
    for first in range(0, len(indices), ITEMS_PER_SHARD):
        chosen = tuple(indices[first : first + ITEMS_PER_SHARD])
        of_shard = tuple(keys[first : first + ITEMS_PER_SHARD])
        path = os.path.join(directory, f"shard-{hash_json(of_shard)[:32]}")
        shards.append(Shard(chosen, tuple(items[i] for i in chosen), of_shard, path))
    return shards


def hash_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def media_size(root: str, item: Item) -> int:
    """Bytes of the media file, -1 where there is none."""
    return _stat(root, item)[0]


def _stat(root: str, item: Item) -> tuple[int, int]:
    try:
        status = os.stat(os.path.join(root, item.path))
    except (OSError, ValueError):
        return -1, 0
    return status.st_size, status.st_mtime_ns


def decode_item(item: Item, root: str, settings: PrepareSettings, crashed: bool = False) -> Outcome:
    """Decodes an item; a bad file becomes the outcome's reason."""
    if crashed:
        return Outcome("crash", "the decoder died on this file, twice")
    try:
        return Outcome(clip=read_clip(item, root, settings))
    except DecodeError as error:
        detail = error.detail
        if error.reason == "missing" and (hint := item.hint or near.beside(root, item.path)):
            detail = f"{detail}; {hint}"
        return Outcome(error.reason, detail)


def write_shard(path: str, outcomes: Iterable[Outcome]) -> None:
    """Writes a shard atomically, even if the process or the machine dies in between.

    Each outcome is written before the next one is taken. Several hosts may write one shard.

    Raises:
      FileError: another command has removed the directory meanwhile.
    """
    temporary = f"{path}{temporary_end(os.getpid())}"
    try:
        _write_shard(path, temporary, outcomes)
    except FileNotFoundError as error:
        raise FileError(
            path, "another command has removed this directory of unfinished work"
        ) from error


def temporary_end(process: int) -> str:
    """The end of the names of files that a process of this host is writing."""
    return f".{socket.gethostname()}.{process}.tmp"


def _write_shard(path: str, temporary: str, outcomes: Iterable[Outcome]) -> None:
    with disk_errors(temporary):
        with open(temporary, "wb") as file:
            digest = hashlib.sha256()
            for outcome in outcomes:
                frames = outcome.clip.frames if outcome.clip else []
                head = {
                    "key": outcome.key,
                    "reason": outcome.reason,
                    "detail": outcome.detail,
                    "sizes": [len(frame) for frame in frames],
                    "pts": outcome.clip.pts if outcome.clip else [],
                }
                text = json.dumps(head).encode()
                for data in (_LENGTH.pack(len(text)), text, *frames):
                    file.write(data)
                    digest.update(data)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        sync_directory(os.path.dirname(path))


def check_shard(path: str) -> None:
    """Raises `FileError` if the file, which is read once, does not match its digest."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        left = os.fstat(file.fileno()).st_size - _DIGEST
        while left > 0 and (chunk := file.read(min(left, 1 << 20))):
            digest.update(chunk)
            left -= len(chunk)
        if file.read() != digest.digest():
            raise FileError(path, "is damaged: it does not have the SHA-256 at its end")


def read_shard(path: str, with_frames: bool = True) -> Iterator[Outcome]:
    """Outcomes in the order of the items; without frames, `clip.frames` is empty.

    Raises:
      FileError: the file is damaged, or no work shard.
    """
    with open_regular(path) as file:
        end = os.fstat(file.fileno()).st_size - _DIGEST
        while file.tell() < end:
            try:
                yield _read_outcome(file, end, with_frames)
            except (ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
                raise FileError(path, f"is damaged: {error!r}; remove it and run again") from error


def _read_outcome(file: BinaryIO, end: int, with_frames: bool) -> Outcome:
    """Reads the next outcome; raises if its lengths reach beyond `end`."""
    size = _LENGTH.unpack(file.read(_LENGTH.size))[0]
    if size > end - file.tell():
        raise ValueError(f"a head of {size} bytes")
    head = json.loads(file.read(size))
    sizes = tuple(head["sizes"])
    valid = all(type(size) is int and size >= 0 for size in sizes)
    if not valid or sum(sizes) > end - file.tell():
        raise ValueError("frames beyond the end")
    if with_frames:
        frames = [file.read(size) for size in sizes]
    else:
        file.seek(sum(sizes), os.SEEK_CUR)
        frames = []
    clip = None if head["reason"] else Clip(frames, head["pts"])
    return Outcome(head["reason"], head["detail"], clip, sizes, head["key"])
