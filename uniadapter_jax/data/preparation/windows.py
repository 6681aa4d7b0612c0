"""Cuts long files into windows: a clip each, with start and end, for galleries and search.

Windows are `window` seconds long and begin every `stride` seconds; the last one ends with the file,
and is shorter where they do not fit (less than a tenth of one is added to the window before). A
window has the captions of the file, and those of the annotated moments that it overlaps by half of
the shorter of the two. In a split where any window has a caption those without are left out.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator, Sequence

import av

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.media import kinds, video_file
from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.data.preparation.clips import PrepareSettings
from uniadapter_jax.data.sources import read_source
from uniadapter_jax.data.sources.item import Item, Source, clean_text

MOST = 1_000_000  # windows of a file
_REST = 0.1  # of a window: shorter ends of a file belong to the one before


def read_items(settings: PrepareSettings, path: str) -> Source:
    """The items of a source; with `settings.window`, windows of its videos."""
    source = read_source(settings.source, path)
    return cut(source, settings) if settings.window else source


def cut(source: Source, settings: PrepareSettings) -> Source:
    """The source with windows in the place of its videos.

    Pictures and files that cannot be opened stay as they are.

    Raises:
      UserError: an item has questions, which are about all of it.
    """
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in source.items:
        if item.qa:
            raise UserError(
                f"config.data.prepare.window={settings.window}: {item.id!r} has questions, which "
                "are about the whole clip; set it to 0"
            )
        groups.setdefault((item.split, item.path), []).append(item)
    items: list[Item] = []
    beyond = 0
    for (group, annotated), name in zip(groups.items(), _names(groups), strict=True):
        seconds = duration(os.path.join(source.root, group[1]))
        if seconds is None:
            items += annotated
        else:
            items += _windows(annotated, name, seconds, settings)
            beyond += sum((item.start or 0) >= seconds for item in annotated)
    texts = {item.split for item in items if item.texts}
    chosen = tuple(item for item in items if item.texts or item.split not in texts)
    told = f"{len(chosen):,} windows of {settings.window} s every {_stride(settings)} s"
    told += f" from {len(groups):,} files"
    if mute := len(items) - len(chosen):
        told += f" ({mute:,} without a caption left out)"
    if beyond:
        told += f" ({beyond:,} annotated moments begin after the end of their file)"
    return dataclasses.replace(source, protocol=f"{source.protocol}; {told}", items=chosen)


def spans(seconds: float, window: float, stride: float) -> Iterator[tuple[float, float]]:
    """(start, end) of the windows of a file."""
    start, number = 0.0, 0
    while seconds - start > window * (1 + _REST) and number < MOST:
        yield start, round(start + window, 6)
        number += 1
        start = round(number * stride, 6)
    if seconds > start:
        yield start, seconds


def duration(path: str) -> float | None:
    """Seconds of a video on its own clock; None for pictures and what is no video."""
    try:
        if kinds.identify(path).kind == "picture":
            return None
        with video_file.open_file(path) as container:
            if container.duration:
                return container.duration / av.time_base
            stream = video_file.video_stream(container)
            end = video_file.survey(container, stream).file_end
            return end - (container.start_time or 0) / av.time_base
    except (DecodeError, av.error.FFmpegError, ValueError, EOFError):
        return None


def _stride(settings: PrepareSettings) -> float:
    return settings.stride or settings.window


def _names(groups: dict[tuple[str, str], list[Item]]) -> list[str]:
    """What the ids of windows begin with: the item's id, or of several on one file its path."""
    names = [
        items[0].id if len(items) == 1 else os.path.splitext(path)[0]
        for (_, path), items in groups.items()
    ]
    keys = [(split, name) for (split, _), name in zip(groups, names, strict=True)]
    counts = collections.Counter(keys)
    return [
        clean_text(name if counts[key] == 1 else key_path)
        for name, key, (_, key_path) in zip(names, keys, groups, strict=True)
    ]


def _windows(
    items: Sequence[Item], name: str, seconds: float, settings: PrepareSettings
) -> Iterator[Item]:
    for start, end in spans(seconds, settings.window, _stride(settings)):
        captions = tuple(
            caption
            for item in items
            if _shows(start, end, item.start or 0.0, min(item.end or seconds, seconds), item)
            for caption in item.captions
        )
        identity = f"{name}@{_clock(start)}-{_clock(end)}"
        yield dataclasses.replace(items[0], id=identity, start=start, end=end, captions=captions)


def _shows(start: float, end: float, first: float, last: float, item: Item) -> bool:
    """Whether a window shows enough of what an item's captions are about."""
    if item.start is None and item.end is None:
        return True
    common = min(end, last) - max(start, first)
    return common > 0 and common >= min(end - start, last - first) / 2


def _clock(seconds: float) -> str:
    return str(round(seconds, 3))
