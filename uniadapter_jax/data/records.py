"""Splits of prepared records: captions in memory, frames and questions read by index.

`prepare` writes them; `docs/data.md` describes the files.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import hashlib
import json
import os
import shlex
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

import numpy as np

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import (
    FileError,
    open_regular,
    parse_line,
    read_json,
)
from uniadapter_jax.data.examples import floats, read_example
from uniadapter_jax.data.frame_places import FramePlaces, places_name
from uniadapter_jax.data.index_lines import Line, index_path, line_digest, read_index
from uniadapter_jax.data.prepared import (
    DESCRIPTIONS,
    check_digest,
    check_file,
    file_digest,
    read_prepared,
)
from uniadapter_jax.data.sources.question import Question, read_questions

PREPARE_COMMAND = (
    "python -m uniadapter_jax.prepare --config=configs/NAME.py --input=RAW_DIR --output="
)
OWN_COMMAND = "python -m uniadapter_jax.prepare --config=own --from-folder=MY_CLIPS --output="

_INFO_BYTES = 16 << 20  # most bytes of dataset_info.json; a record file takes some 10
_LISTS = ("ids", "captions", "frame_counts", "question_counts", "unanswered_counts", "_hashed")
_OPENING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Record:
    """A clip: JPEG frames, their times in seconds (`pts`), and its texts."""

    id: str
    frames: list[bytes]
    pts: np.ndarray
    captions: list[str]
    qa: list[dict[str, Any]]


class Records:
    """One or several splits, or a subset, in a fixed order. Picklable: reading opens the files.

    Attributes:
      root, split: directory and name of the split; several names are joined by commas.
      ids, captions: one entry per clip. With several splits, an id begins with its split: `val/ID`.
      frame_counts: number of stored frames of every clip.
      contents: per clip a key of its pixels, equal only if every stored byte of its frames is.
      question_counts, questions: one entry per clip; empty in a set of captions.
      unanswered_counts: number of questions without an answer, per clip.
      coverage: the counts of `prepare` for the splits: expected, found, reasons, empty_captions.
      fingerprint: SHA-256 over the prepare settings and the index lines, which hold hashes of the
        frames; equal only if texts, order and pixels are the same to the byte.
    """

    def __init__(
        self,
        root: str,
        split: str,
        prepared: dict[str, Any],
        lines: Sequence[Line],
        places: Mapping[str, FramePlaces],
    ):
        self.root = root
        self.split = split
        self.prepared = prepared
        self.coverage: dict[str, Any] = _coverage(prepared, split)
        self._lines = list(lines)
        self._places = places
        self._several = "," in split
        self._sources: dict[str, Any] = {}

    # The lists are made once: a batch asks for a few of a million entries, row by row.

    @functools.cached_property
    def ids(self) -> list[str]:
        return [self._name(line) for line in self._lines]

    @functools.cached_property
    def captions(self) -> list[list[str]]:
        return [line.captions for line in self._lines]

    @functools.cached_property
    def frame_counts(self) -> list[int]:
        return [line.frames for line in self._lines]

    @property
    def contents(self) -> list[tuple[bytes, int]]:
        """Per clip (digest, number) of its frames; equal only if every byte of the frames is."""
        return [(line.frames_digest, line.frames) for line in self._lines]

    @functools.cached_property
    def question_counts(self) -> list[int]:
        return [line.questions for line in self._lines]

    @functools.cached_property
    def unanswered_counts(self) -> list[int]:
        return [line.unanswered for line in self._lines]

    @functools.cached_property
    def _hashed(self) -> bytearray:
        """Per clip whether this object has seen that its frames are those of the index."""
        return bytearray(len(self))

    @property
    def questions(self) -> Sequence[list[Question]]:
        """The questions of every clip; an entry is read from the index each time it is used."""
        return _Questions(self)

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
        kept = {name: value for name, value in self.__dict__.items() if name not in _LISTS}
        return kept | {"_sources": {}}

    def index_path(self, i: int) -> str:
        """The index file that names clip i."""
        return index_path(self.root, self._lines[i].split)

    def subset(self, indices: Iterable[int]) -> Records:
        """These clips of this object, in this order."""
        chosen = copy.copy(self)  # by `__getstate__`, so without the lists
        chosen._lines = [self._lines[i] for i in np.asarray(list(indices), dtype=int)]
        return chosen

    def read(self, i: int) -> Record:
        """Reads clip i. Raises UserError where the files do not match their index."""
        return _record(self._read(i))

    def read_frames(self, i: int, chosen: Sequence[int]) -> list[memoryview]:
        """The JPEG frames of clip i with these numbers, of which nothing is copied.

        No others are read, unless the records were made by a version that compressed them.
        """
        line = self._lines[i]
        if line.split not in self._places:
            frames = self._read(i)["frames"]
            return [frames[j] for j in chosen]
        try:
            return self._places[line.split].read(line.frames_before, chosen)
        except FileError as error:
            raise self._damaged(line, error) from error

    def _read(self, i: int) -> dict[str, list[memoryview]]:
        """The features of clip i, which are what its index line says.

        That a file holds the frames that the index means cannot change while it is open, so they
        are hashed once; against damage ArrayRecord checks its own sums at every reading.
        """
        line = self._lines[i]
        where = self._where(line)
        try:
            features = read_example(self._open(line.split)[line.number])
            name, captions, frames = *_texts(features), features["frames"]
        except Exception as error:  # ArrayRecord and protobuf have no error type of their own
            raise self._damaged(line, error) from error
        named = f"which index-{line.split}.jsonl names; prepare the records again"
        if name != line.id:
            raise UserError(f"{where} is not {line.id!r}, {named}")
        if captions != line.captions:
            raise UserError(f"{where}, {line.id!r}, is damaged: other captions than those {named}")
        if not self._hashed[i] and frames_digest(frames) != line.frames_digest:
            raise UserError(
                f"{where}, {line.id!r}, is damaged: its frames lack the SHA-256 {named}"
            )
        self._hashed[i] = True
        return features

    def _where(self, line: Line) -> str:
        return f"{self.root}: record {line.number} of {line.split}"

    def _damaged(self, line: Line, error: Exception) -> UserError:
        return UserError(f"{self._where(line)} is damaged: {error}; prepare the records again")

    def read_questions(self, i: int) -> list[Question]:
        """The questions about clip i. Raises UserError for a malformed one."""
        line = self._lines[i]
        if not line.questions:
            return []
        with open_regular(self.index_path(i)) as file:
            file.seek(line.start)
            text = file.read(line.size)
        if line_digest(text) != line.digest:
            raise UserError(f"{self.index_path(i)} has changed since it was opened")
        return read_questions(parse_line(text)["qa"], self._name(line))

    def _name(self, line: Line) -> str:
        return f"{line.split}/{line.id}" if self._several else line.id

    def _open(self, split: str) -> Any:
        """TFDS's random access source of serialised examples.

        Opened and read once under a lock: two threads that do it at once can hang.
        """
        if split not in self._sources:
            import tensorflow_datasets as tfds  # already imported, see `open_records`

            with _OPENING:
                builder = tfds.builder_from_directory(self.root)
                raw = tfds.decode.DeserializeMethod.RAW_BYTES
                source = builder.as_data_source(split=split, deserialize_method=raw)
                source[0]
                self._sources[split] = source
        return self._sources[split]


class _Questions(Sequence[list[Question]]):
    """The questions of every clip, read on access."""

    def __init__(self, records: Records):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, i: int) -> list[Question]: ...

    @overload
    def __getitem__(self, i: slice) -> list[list[Question]]: ...

    def __getitem__(self, i: int | slice) -> list[Question] | list[list[Question]]:
        if isinstance(i, slice):
            return [self._records.read_questions(j) for j in range(len(self))[i]]
        return self._records.read_questions(range(len(self))[i])


def open_records(root: str, split: str) -> Records:
    """Opens a split of a records directory, or several in a row, named as in `train,val`.

    Raises:
      UserError: there are no records (the message says how to make them) or no such split, or a
        split is named twice.
    """
    # Here and not when the first record is read, which a thread does: importing TFDS replaces
    # Python's own `__import__` for a while, and an import that another thread does meanwhile (Orbax
    # has some in what writes a checkpoint) gets something else than its module.
    import tensorflow_datasets as tfds  # noqa: F401 (a second or two, which `--help` need not take)

    root = os.path.abspath(root)
    prepared = read_prepared(root)
    if prepared is None:
        quoted = shlex.quote(root)
        raise UserError(
            f"no records in {root} (config.data.records); make them with {PREPARE_COMMAND}{quoted}"
            f", or, of a folder of your own clips, with {OWN_COMMAND}{quoted}"
        )
    for name in DESCRIPTIONS:
        check_file(root, prepared, name)
    names = [name.strip() for name in split.split(",")]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"the splits {split!r} name {twice[0]!r} twice")
    lines = [line for name in names for line in read_index(root, name, prepared)]
    places = {name: _places(root, name, prepared) for name in names}
    known = {name: of_split for name, of_split in places.items() if of_split is not None}
    return Records(root, ",".join(names), prepared, lines, known)


def _places(root: str, split: str, prepared: dict[str, Any]) -> FramePlaces | None:
    """Where the frames of a split lie; None in records of a version that did not say."""
    if (name := places_name(split)) not in prepared["files"]:
        return None
    path = os.path.join(root, name)
    try:
        check_digest(path, prepared, name, file_digest(path))
    except OSError as error:
        raise FileError(
            path, f"cannot be read: {error.strerror}; prepare the records again"
        ) from error
    info = read_json(os.path.join(root, DESCRIPTIONS[0]), limit=_INFO_BYTES)
    count = next(len(each["shardLengths"]) for each in info["splits"] if each["name"] == split)
    names = (f"records-{split}.array_record-{i:05}-of-{count:05}" for i in range(count))
    return FramePlaces(path, [os.path.join(root, name) for name in names])


def _record(features: Mapping[str, list[memoryview]]) -> Record:
    name, captions = _texts(features)
    return Record(
        id=name,
        frames=[bytes(frame) for frame in features["frames"]],
        pts=floats(features["pts"]),
        captions=captions,
        qa=[json.loads(bytes(text)) for text in features["qa"]],
    )


def _texts(features: Mapping[str, list[memoryview]]) -> tuple[str, list[str]]:
    """(id, captions)."""
    (name,) = features["id"]
    return str(name, "utf-8"), [str(text, "utf-8") for text in features["captions"]]


def _coverage(prepared: dict[str, Any], split: str) -> dict[str, Any]:
    """The coverage of a split; of several splits, the sums."""
    first, *others = (prepared["coverage"][name] for name in split.split(","))
    total = dict(first)
    for other in others:
        reasons = collections.Counter(total["reasons"]) + collections.Counter(other["reasons"])
        total = {key: total[key] + other[key] for key in total if key != "reasons"}
        total["reasons"] = dict(sorted(reasons.items()))
    return total


def carve_validation(records: Records, count: int) -> tuple[Records, Records]:
    """(train, validation): validation takes the `count` clips with the smallest SHA-256 of the id.

    So the choice does not depend on the order of the records.
    """
    if not 0 <= count < len(records):
        raise UserError(
            f"config.data.val={count}: cannot carve that many validation clips from the "
            f"{len(records)} of split {records.split!r}; take at most {len(records) - 1}"
        )
    hashes = [hashlib.sha256(name.encode()).digest() for name in records.ids]
    order = sorted(range(len(records)), key=lambda i: hashes[i])
    return records.subset(sorted(order[count:])), records.subset(sorted(order[:count]))


def frames_digest(frames: Iterable[bytes | memoryview]) -> bytes:
    """SHA-256 of the frames of a clip, one after the other."""
    digest = hashlib.sha256()
    for frame in frames:  # one after the other, without a copy of all
        digest.update(frame)
    return digest.digest()
