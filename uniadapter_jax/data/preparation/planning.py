"""Which clips are decoded, and which are taken over from finished records or unfinished work."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence

from uniadapter_jax.common.files import FileError
from uniadapter_jax.data.preparation.clips import PrepareSettings
from uniadapter_jax.data.preparation.kept import Found
from uniadapter_jax.data.preparation.shards import (
    Outcome,
    Shard,
    check_shard,
    item_keys,
    plan_shards,
    read_shard,
)
from uniadapter_jax.data.preparation.work import remove
from uniadapter_jax.data.sources.item import Item, Source


@dataclasses.dataclass(frozen=True)
class Keys:
    """The items of a source that can be records, by their keys.

    Attributes:
      of: {index of an item: key}.
      mute: indices of items that are left out, since they have no text.
    """

    of: dict[int, str]
    mute: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What becomes of every item.

    Attributes:
      keys: {index of an item: key}, but for those in `mute`, which are left out.
      kept: {index: what finished `records` have of it}.
      shards: of all other items.
    """

    source: Source
    keys: Mapping[int, str]
    mute: frozenset[int]
    kept: Mapping[int, Found]
    records: str
    shards: list[Shard]


def find_keys(source: Source, settings: PrepareSettings) -> Keys:
    """The keys of all items that have a text, or are in a split where none has."""
    mute = _mute(source.items)
    indices = [i for i in range(len(source.items)) if i not in mute]
    keys = item_keys((source.items[i] for i in indices), source.root, settings)
    return Keys(dict(zip(indices, keys, strict=True)), mute)


def _mute(items: Sequence[Item]) -> frozenset[int]:
    """Items without a caption or question in splits where others have one.

    A split in which no item has any is meant to be so: a gallery, to be searched.
    """
    silent = [not item.qa and not item.texts for item in items]
    speaking = {item.split for item, none in zip(items, silent, strict=True) if not none}
    return frozenset(i for i, none in enumerate(silent) if none and items[i].split in speaking)


def plan(
    source: Source,
    settings: PrepareSettings,
    keys: Keys,
    found: Mapping[str, Found],
    records: str,
    work: str,
) -> Plan:
    """Takes over what is `found` in finished records, and divides the rest into shards.

    The plan is the same on every host and after every kill, as long as records and input are.
    """
    kept = {i: found[key] for i, key in keys.of.items() if key in found and found[key].lasts}
    rest = [i for i in keys.of if i not in kept]
    directory = os.path.join(work, "shards")
    shards = plan_shards(source.items, source.root, settings, directory, rest)
    return Plan(source, keys.of, keys.mute, kept, records, shards)


def take_up(shards: Sequence[Shard], directory: str) -> list[Shard]:
    """The shards, with clips of undone ones found in whatever shards lie in `directory`.

    So a changed input does not lose what a killed command had decoded. Damaged shards, and those
    without a clip that is wanted, are removed.
    """
    named = {os.path.basename(shard.path) for shard in shards}
    wanted = {key for shard in shards if not shard.done for key in shard.keys}
    there: dict[str, tuple[str, int]] = {}
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        if entry.name.endswith(".tmp"):
            continue
        outcomes = _sound(entry.path)
        if outcomes is None:
            remove(entry.path)
        elif entry.name not in named:
            lasting = [(i, o.key) for i, o in enumerate(outcomes) if Found(reason=o.reason).lasts]
            new = {key: (entry.path, i) for i, key in lasting if key in wanted - there.keys()}
            there |= new
            if not new:
                remove(entry.path)
    if not there:
        return list(shards)
    return [dataclasses.replace(shard, done_before=_places(shard, there)) for shard in shards]


def _sound(path: str) -> list[Outcome] | None:
    """The heads of a shard, None where it is damaged, which is said."""
    try:
        check_shard(path)
        return list(read_shard(path, with_frames=False))
    except FileError as error:
        print(f"warning: {error}; its items are decoded again", file=sys.stderr)
        return None


def _places(shard: Shard, there: Mapping[str, tuple[str, int]]) -> dict[int, tuple[str, int]]:
    return {i: there[key] for i, key in enumerate(shard.keys) if key in there}


def check_done(shards: Sequence[Shard]) -> None:
    """Removes those of these shards that are damaged."""
    for shard in shards:
        if shard.done and _sound(shard.path) is None:
            remove(shard.path)
