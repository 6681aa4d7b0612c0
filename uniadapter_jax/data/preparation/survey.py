"""What `prepare` would read, and how much it would write, without writing anything."""

from __future__ import annotations

import collections
import os
from collections.abc import Sequence

import numpy as np

from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.data.preparation.clips import PrepareSettings, read_clip
from uniadapter_jax.data.preparation.shards import media_size
from uniadapter_jax.data.sources.item import Item, Source

SAMPLE = 8  # items that are decoded to tell how large the records get


def survey(source: Source, settings: PrepareSettings) -> list[str]:
    """Lines for people: what each split names, what of it is there, and the size of the records."""
    lines = [source.protocol]
    by_split: dict[str, list[Item]] = collections.defaultdict(list)
    for item in source.items:
        by_split[item.split].append(item)
    there: list[Item] = []
    for split, items in by_split.items():
        sizes = [media_size(source.root, item) for item in items]
        missing = [item for item, size in zip(items, sizes, strict=True) if size < 0]
        there += [item for item, size in zip(items, sizes, strict=True) if size >= 0]
        texts = sum(len(item.captions) for item in items)
        line = f"{split}: {len(items):,} items, {texts:,} captions"
        if asked := sum(len(item.qa) for item in items):
            line += f", {asked:,} questions"
        line += f"; {len(items) - len(missing):,} files are there, {len(missing):,} missing"
        if missing:
            first = missing[0]
            line += f" (the first: {os.path.join(source.root, first.path)}"
            line += f"; {first.hint})" if first.hint else ")"
        lines.append(line)
    if source.left_out:
        lines.append(f"left out by the annotations: {len(source.left_out):,} questions")
    files = {item.path: media_size(source.root, item) for item in there}
    lines.append(f"to read: {sum(files.values()) / 1e6:,.0f} MB in {len(files):,} files")
    lines.append(_size(source.root, there, settings))
    return lines


def _size(root: str, items: Sequence[Item], settings: PrepareSettings) -> str:
    """The records' size, from a few items spread over all."""
    spread = np.linspace(0, max(len(items) - 1, 0), SAMPLE).round().astype(int)
    sizes, broken = [], 0
    for place in np.unique(spread).tolist() if items else ():
        try:
            sizes.append(sum(map(len, read_clip(items[place], root, settings).frames)))
        except DecodeError:
            broken += 1
    if not sizes:
        return "to write: not known, since no item could be decoded"
    total = np.mean(sizes) * len(items)
    told = (
        f"to write: about {total / 1e6:,.0f} MB of records, by {len(sizes)} items that were tried"
    )
    return told + (f"; {broken} others could not be decoded" if broken else "")
