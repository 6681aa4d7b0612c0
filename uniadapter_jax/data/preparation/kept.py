"""What finished records are still good for: the frames of items that have not changed.

`kept.jsonl` beside the records names the key of every item (see `shards.item_keys`) and where its
frames are, so that records of a changed input take them over instead of decoding again. It holds
the times of media files, so it is the one file that a copy of the input may change; records
without it are as good, but cannot grow.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from uniadapter_jax.common.files import FileError, parse_line, read_lines
from uniadapter_jax.data.preparation.shards import hash_json

NAME = "kept.jsonl"
_LINE_BYTES = 1 << 16
# What says something about the moment, not about the file.
_TRIED_AGAIN = ("missing", "crash")


@dataclasses.dataclass(frozen=True)
class Found:
    """The frames of a key: record `number` of `split`, or the reason why there are none.

    `size` is the bytes of the `frames` frames.
    """

    split: str = ""
    number: int = -1
    frames: int = 0
    size: int = 0
    reason: str = ""
    detail: str = ""

    @property
    def lasts(self) -> bool:
        return self.reason not in _TRIED_AGAIN


def kept_lines(found: Iterable[tuple[str, Found]], files: Mapping[str, Any]) -> list[str]:
    """The lines of kept.jsonl; `files` are the digests of the records' other files."""
    lines = [json.dumps({"records": hash_json(files)})]
    for key, place in found:
        used = ("reason", "detail") if place.reason else ("split", "number", "frames", "size")
        fields = {name: getattr(place, name) for name in used}
        lines.append(json.dumps({"key": key, **fields}, ensure_ascii=False))
    return [*lines, json.dumps({"sha256": _digest(lines)})]


def read_kept(records: str, files: Mapping[str, Any]) -> dict[str, Found]:
    """{key: place} of finished records; empty, with a warning, where the file is no use."""
    path = os.path.join(records, NAME)
    try:
        lines = [text.decode().rstrip("\n") for _, text in read_lines(path, _LINE_BYTES)]
        values = [parse_line(line) for line in lines]
        if values[0] != {"records": hash_json(files)}:
            raise FileError(path, "is of other records")
        if values[-1] != {"sha256": _digest(lines[:-1])}:
            raise FileError(path, "is damaged: it does not have the SHA-256 in its last line")
        return {value.pop("key"): Found(**value) for value in values[1:-1]}
    except FileNotFoundError:
        return {}
    except (FileError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        told = error if isinstance(error, FileError) else f"{path}: is damaged: {error!r:.200}"
        print(f"warning: {told}; no frames are taken over", file=sys.stderr)
        return {}


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
