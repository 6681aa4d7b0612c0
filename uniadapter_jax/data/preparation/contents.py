"""What the records will hold: an entry per clip with the place of its frames, and what is left out.

Frames come from work shards, or from finished records that are being replaced.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Protocol

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.preparation.clips import Clip
from uniadapter_jax.data.preparation.kept import Found
from uniadapter_jax.data.preparation.planning import Plan
from uniadapter_jax.data.preparation.shards import Outcome, read_shard
from uniadapter_jax.data.sources.item import Item

ReadClip = Callable[[int], Clip]
SILENT = "no_caption"  # the reason of items that have no text


class FrameFile(Hashable, Protocol):
    """A file of clips; equal ones are the same file."""

    def reader(self) -> ReadClip:
        """A function of a clip's position, fast where positions rise."""


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """A work shard."""

    path: str

    def reader(self) -> ReadClip:
        read: Iterator[tuple[int, Outcome]] = iter(())
        last: tuple[int, Outcome] = (-1, Outcome())

        def clip(position: int) -> Clip:
            nonlocal read, last
            if last[0] < 0 or position < last[0]:
                read, last = enumerate(read_shard(self.path)), (-1, Outcome())
            while last[0] < position:
                last = next(read)
            assert last[1].clip is not None
            return last[1].clip

        return clip


class LostFrames(Exception):
    """Finished records are damaged where a clip's frames were to be taken from them."""


@dataclasses.dataclass(frozen=True)
class RecordFile:
    """A split of finished records."""

    root: str
    split: str

    def reader(self) -> ReadClip:
        from uniadapter_jax.data.records import open_records  # decoding processes do not need TFDS

        try:
            records = open_records(self.root, self.split)
        except UserError as error:
            raise LostFrames(str(error)) from error

        def clip(position: int) -> Clip:
            try:
                record = records.read(position)
            except UserError as error:
                raise LostFrames(str(error)) from error
            return Clip(record.frames, record.pts.tolist())

        return clip


@dataclasses.dataclass(frozen=True)
class Entry:
    """A record to be written: its item and the place of its clip.

    `size` is the bytes of its frames.
    """

    item: Item
    captions: tuple[str, ...]
    key: str
    file: FrameFile
    position: int
    frames: int
    size: int

    def line(self, sha256: str) -> dict[str, Any]:
        """The record's line in the index."""
        return {
            "id": self.item.id,
            "captions": self.captions,
            "frames": self.frames,
            "qa": self.item.qa,
            "sha256": sha256,
        }


@dataclasses.dataclass(frozen=True)
class Contents:
    """Records per split, and a line for each thing left out.

    `coverage` has for every split: expected, found, reasons, empty_captions (dropped).
    """

    entries: dict[str, list[Entry]]
    failures: list[tuple[str, Found]]  # keys of items that gave no clip, and why
    problems: list[dict[str, Any]]
    coverage: dict[str, dict[str, Any]]

    @property
    def expected(self) -> int:
        return sum(split["expected"] for split in self.coverage.values())

    @property
    def bad(self) -> int:
        return self.expected - sum(split["found"] for split in self.coverage.values())

    @property
    def silent(self) -> int:
        """The items that are left out since they have no text."""
        return sum(split["reasons"].get(SILENT, 0) for split in self.coverage.values())

    @property
    def reasons(self) -> str:
        counts: collections.Counter[str] = collections.Counter()
        for split in self.coverage.values():
            counts.update(split["reasons"])
        return ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items())) or "none"

    def lines(self) -> Iterator[str]:
        """What each split has and lacks, for people."""
        for split, counts in self.coverage.items():
            left_out = ", ".join(f"{reason} {n}" for reason, n in counts["reasons"].items())
            line = f"{split}: {counts['found']} of {counts['expected']} items"
            line += f"; left out: {left_out}" if left_out else ""
            empty = counts["empty_captions"]
            yield line + (f"; {empty} empty captions dropped" if empty else "")


def collect(plan: Plan) -> Contents:
    """Reads the heads of all work shards of a plan; all else is in the order of the items."""
    items = plan.source.items
    heads = _heads(plan)
    entries: dict[str, list[Entry]] = {item.split: [] for item in items}
    reasons: dict[str, collections.Counter[str]] = {s: collections.Counter() for s in entries}
    dropped: collections.Counter[str] = collections.Counter()
    problems, failures = list(plan.source.left_out), []
    for index, item in enumerate(items):
        file, position, found = heads[index]
        where = {"id": item.id, "split": item.split, "path": item.path}
        if found.reason:
            reasons[item.split][found.reason] += 1
            problems.append({**where, "reason": found.reason, "detail": found.detail})
            if index in plan.keys:
                failures.append((plan.keys[index], found))
            continue
        captions = item.texts
        if empty := len(item.captions) - len(captions):
            dropped[item.split] += empty
            detail = f"{empty} of {len(item.captions)} captions dropped"
            problems.append({**where, "reason": "empty_caption", "detail": detail})
        key, size = plan.keys[index], found.size
        entry = Entry(item, captions, key, file, position, found.frames, size)
        entries[item.split].append(entry)
    expected = collections.Counter(item.split for item in items)
    coverage = {
        split: {
            "expected": expected[split],
            "found": len(entries[split]),
            "reasons": dict(sorted(reasons[split].items())),
            "empty_captions": dropped[split],
        }
        for split in entries
    }
    return Contents(entries, failures, problems, coverage)


def _heads(plan: Plan) -> dict[int, tuple[FrameFile, int, Found]]:
    """(File, position there, what there is) of every item."""
    nowhere = ShardFile("")
    detail = "no caption with a word in it; the file was not looked at"
    mute = Found(reason=SILENT, detail=detail)
    heads: dict[int, tuple[FrameFile, int, Found]] = dict.fromkeys(plan.mute, (nowhere, 0, mute))
    for index, found in plan.kept.items():
        heads[index] = RecordFile(plan.records, found.split), found.number, found
    for shard in plan.shards:
        file = ShardFile(shard.path)
        outcomes = read_shard(shard.path, with_frames=False)
        for position, (index, outcome) in enumerate(zip(shard.indices, outcomes, strict=True)):
            count, size = len(outcome.sizes), sum(outcome.sizes)
            found = Found("", -1, count, size, outcome.reason, outcome.detail)
            heads[index] = file, position, found
    return heads


def sound(plan: Plan) -> dict[str, Found]:
    """Those of the frames that a plan takes over that are not damaged, by key."""
    readers: dict[str, ReadClip] = {}
    good: dict[str, Found] = {}
    for index, found in plan.kept.items():
        try:
            if not found.reason:
                if found.split not in readers:
                    readers[found.split] = RecordFile(plan.records, found.split).reader()
                readers[found.split](found.number)
            good[plan.keys[index]] = found
        except LostFrames:
            continue
    return good
