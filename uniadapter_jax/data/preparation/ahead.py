"""Reads the clips of one file together, so that what they share is decoded once.

Windows of a long file overlap, and annotated moments do. Items of a shard that follow each other on
one file are read at once. Where that fails, or a process died on the shard before, each is read by
itself: that says which of them is bad, and gives the others as it would have anyway.
"""

from __future__ import annotations

from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.data.preparation.clips import Clip, PrepareSettings, read_clips
from uniadapter_jax.data.preparation.shards import Shard


class ReadAhead:
    """The clips of a shard, as far as they can be read together.

    Args:
      died: items that a process died on.
    """

    def __init__(self, shard: Shard, root: str, settings: PrepareSettings, died: frozenset[int]):
        self._shard, self._root, self._settings = shard, root, settings
        self._ready: dict[int, Clip] = {}
        self._next = len(shard.items) if died & set(shard.indices) else 0  # nobody looked at it yet

    def take(self, position: int) -> Clip | None:
        """The clip of an item, which is then forgotten; None: it is to be read by itself."""
        if position >= self._next:
            self._read(position)
        return self._ready.pop(position, None)

    def _read(self, position: int) -> None:
        together = self._together(position)
        self._next = together[-1] + 1
        if len(together) == 1:
            return
        items = [self._shard.items[place] for place in together]
        try:
            clips = read_clips(items, self._root, self._settings)
        except DecodeError:
            return
        self._ready = dict(zip(together, clips, strict=True))

    def _together(self, position: int) -> list[int]:
        """The items from here on that are on one file and not done before."""
        items, done = self._shard.items, self._shard.done_before
        together = [position]
        for place in range(position + 1, len(items)):
            if position in done or place in done or items[place].path != items[position].path:
                break
            together.append(place)
        return together
