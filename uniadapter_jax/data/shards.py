"""Work shards: the decoded clips of a few consecutive items, kept until the records are assembled.

A shard is finished or absent: it is written under a temporary name, synced and renamed. Its name
holds a hash of everything its content depends on (the items, sizes and times of the media files,
the settings, the decoders' versions), so a shard of other settings or files is never taken up.
How items are cut into shards does not depend on the number of workers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.files import sync_directory
from uniadapter_jax.data.clips import Clip, PrepareSettings, decoder_versions, read_clip
from uniadapter_jax.data.media import DecodeError
from uniadapter_jax.data.sources.item import Item, clean_text

ITEMS_PER_SHARD = 16
FORMAT = 1  # raise it when the content of a shard changes its meaning
_LENGTH = struct.Struct("<I")


@dataclasses.dataclass(frozen=True)
class Shard:
    """Items [first, first + len(items)) of the source and the file that their clips go to."""

    first: int
    items: tuple[Item, ...]
    path: str

    @property
    def done(self) -> bool:
        return os.path.exists(self.path)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one item: a clip, or the reason why there is none."""

    index: int
    reason: str = ""
    detail: str = ""
    clip: Clip | None = None
    sizes: tuple[int, ...] = ()  # bytes of the frames, as read back from a shard


def plan_shards(
    items: Sequence[Item], root: str, settings: PrepareSettings, directory: str
) -> list[Shard]:
    """Cuts the items into shards below `directory`, which need not exist."""
    shared = {"format": FORMAT, "settings": settings.identity(), "decoder": decoder_versions()}
    shards = []
    for first in range(0, len(items), ITEMS_PER_SHARD):
        part = tuple(items[first : first + ITEMS_PER_SHARD])
        facts = [(item.path, item.start, item.end, *_stat(root, item)) for item in part]
        digest = hash_json({**shared, "items": facts})[:16]
        path = os.path.join(directory, f"shard-{first // ITEMS_PER_SHARD:06d}-{digest}")
        shards.append(Shard(first, part, path))
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


def decode_item(
    index: int, item: Item, root: str, settings: PrepareSettings, crashed: bool = False
) -> Outcome:
    """Never raises for a bad file. An item without texts is not decoded; `prepare` counts it."""
    if not item.qa and not any(clean_text(caption) for caption in item.captions):
        return Outcome(index, "no_caption", "no caption with a word in it")
    if crashed:
        return Outcome(index, "crash", "the decoder died on this file, twice")
    try:
        return Outcome(index, clip=read_clip(item, root, settings))
    except DecodeError as error:
        return Outcome(index, error.reason, error.detail)


def write_shard(path: str, outcomes: Sequence[Outcome]) -> None:
    """All or nothing, also when the process or the machine dies in between."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with disk_errors(temporary):
        with open(temporary, "wb") as file:
            for outcome in outcomes:
                frames = outcome.clip.frames if outcome.clip else []
                head = {
                    "index": outcome.index,
                    "reason": outcome.reason,
                    "detail": outcome.detail,
                    "sizes": [len(frame) for frame in frames],
                    "pts": outcome.clip.pts if outcome.clip else [],
                }
                text = json.dumps(head).encode()
                file.write(_LENGTH.pack(len(text)) + text)
                file.writelines(frames)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        sync_directory(os.path.dirname(path))


def read_shard(path: str, with_frames: bool = True) -> Iterator[Outcome]:
    """Outcomes in the order of the items; without frames, `clip.frames` is empty."""
    with open(path, "rb") as file:
        while prefix := file.read(_LENGTH.size):
            head = json.loads(file.read(_LENGTH.unpack(prefix)[0]))
            if with_frames:
                frames = [file.read(size) for size in head["sizes"]]
            else:
                file.seek(sum(head["sizes"]), os.SEEK_CUR)
                frames = []
            clip = None if head["reason"] else Clip(frames, head["pts"])
            sizes = tuple(head["sizes"])
            yield Outcome(head["index"], head["reason"], head["detail"], clip, sizes)
