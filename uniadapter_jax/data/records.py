"""One split of prepared records: texts in memory, frames read by index.

`prepare` writes them; `docs/data.md` describes the files.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from uniadapter_jax.errors import UserError

PREPARE_COMMAND = (
    "python -m uniadapter_jax.prepare --config=configs/NAME.py --input=RAW_DIR --output="
)

_OPENING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Record:
    """One clip: JPEG frames, their seconds in the clip, its texts."""

    id: str
    frames: list[bytes]
    pts: np.ndarray
    captions: list[str]
    qa: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Line:
    """What the index says of a record."""

    id: str
    captions: list[str]
    frames: int
    digest: bytes  # SHA-256 of the index line


class Records:
    """A split, or a part of one, in a fixed order. Picklable: files are opened where it is read.

    Attributes:
      root, split: where it was opened.
      ids, captions: of every clip.
      frame_counts: stored frames of every clip.
      coverage: what `prepare` found of the split: expected, found, reasons, empty_captions.
      fingerprint: SHA-256 over the prepare settings and the index lines, which hold hashes of the
        frames: equal where every byte of texts, order and pixels is.
    """

    def __init__(self, root: str, split: str, prepared: dict[str, Any], lines: Sequence[Line]):
        self.root = root
        self.split = split
        self.prepared = prepared
        self.coverage: dict[str, Any] = prepared["coverage"][split]
        self._lines = list(lines)
        self._places = np.arange(len(self._lines))
        self._source: Any = None

    @property
    def ids(self) -> list[str]:
        return [line.id for line in self._lines]

    @property
    def captions(self) -> list[list[str]]:
        return [line.captions for line in self._lines]

    @property
    def frame_counts(self) -> list[int]:
        return [line.frames for line in self._lines]

    @property
    def fingerprint(self) -> str:
        settings = json.dumps(self.prepared["settings"], sort_keys=True)
        digest = hashlib.sha256(settings.encode())
        for line in self._lines:
            digest.update(line.digest)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._lines)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_source": None}

    def subset(self, indices: Iterable[int]) -> Records:
        """These clips in this order; indices count in this object."""
        chosen = np.asarray(list(indices), dtype=int)
        part = copy.copy(self)
        part._lines = [self._lines[i] for i in chosen]
        part._places = self._places[chosen]
        return part

    def read(self, i: int) -> Record:
        """Reads clip i. Raises UserError where the files do not match their index."""
        line = self._lines[i]
        try:
            data = self._open()[int(self._places[i])]
            features = tf_example_pb2.Example.FromString(data).features.feature
        except Exception as error:  # ArrayRecord and protobuf have no error type of their own
            raise UserError(
                f"{self.root}: record {self._places[i]} of {self.split} is damaged: {error}"
            ) from error
        if features["id"].bytes_list.value[0].decode() != line.id:
            raise UserError(
                f"{self.root}: record {self._places[i]} of {self.split} is not {line.id!r}, which "
                f"index-{self.split}.jsonl names; prepare the records again"
            )
        return Record(
            id=line.id,
            frames=list(features["frames"].bytes_list.value),
            pts=np.asarray(features["pts"].float_list.value, np.float32),
            captions=[text.decode() for text in features["captions"].bytes_list.value],
            qa=[json.loads(text) for text in features["qa"].bytes_list.value],
        )

    def _open(self) -> Any:
        """TFDS's random access source of serialised examples.

        Opened and read once under a lock: TFDS imports what it needs at first use, and its way of
        importing lazily hangs when two threads do it at once.
        """
        if self._source is None:
            with _OPENING:
                builder = tfds.builder_from_directory(self.root)
                raw = tfds.decode.DeserializeMethod.RAW_BYTES
                source = builder.as_data_source(split=self.split, deserialize_method=raw)
                source[0]
                self._source = source
        return self._source


def open_records(root: str, split: str) -> Records:
    """Opens a split of a records directory; UserError says how to make one."""
    root = os.path.abspath(root)
    prepared = _read_prepared(root)
    path = os.path.join(root, f"index-{split}.jsonl")
    if not os.path.exists(path):
        there = [name for name, counts in prepared["coverage"].items() if counts["found"]]
        raise UserError(f"{root} has no split {split!r}; it has {', '.join(there)}")
    lines = []
    with open(path, "rb") as file:
        for number, text in enumerate(file, 1):
            try:
                value = json.loads(text)
                line = Line(value["id"], value["captions"], value["frames"], _digest(text))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number}: not an index line: {error}") from error
            lines.append(line)
    found = prepared["coverage"].get(split, {}).get("found")
    if len(lines) != found:
        raise UserError(f"{path} has {len(lines)} lines, prepare.json counts {found}")
    return Records(root, split, prepared, lines)


def carve_validation(records: Records, count: int) -> tuple[Records, Records]:
    """(train, validation): validation takes the `count` clips with the smallest SHA-256 of the id.

    So a clip stays on its side whatever order or machine the records come from.
    """
    if not 0 <= count < len(records):
        raise UserError(
            f"config.data.val={count}: cannot carve that many validation clips from the "
            f"{len(records)} of split {records.split!r}"
        )
    hashes = [hashlib.sha256(name.encode()).digest() for name in records.ids]
    order = sorted(range(len(records)), key=lambda i: hashes[i])
    return records.subset(sorted(order[count:])), records.subset(sorted(order[:count]))


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def _read_prepared(root: str) -> dict[str, Any]:
    path = os.path.join(root, "prepare.json")
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise UserError(
            f"no records in {root} (config.data.records); make them with {PREPARE_COMMAND}{root}"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable: {error}") from error
