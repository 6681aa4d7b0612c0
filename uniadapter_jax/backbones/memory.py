"""The media that BLIP's texts attend to.

Several texts may look at one medium: their queries stand side by side, and its keys and values are
made once per layer and are never repeated.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from uniadapter_jax.backbones.attention import KeysValues
from uniadapter_jax.common.types import Array, Bool, Float, Int, Shaped


class Memory(NamedTuple):
    """The m media that q groups of p texts attend to.

    states: hidden states of the media, e.g. a picture's patches or the words of a question.
    mask: False where a medium has padding; None if it has none.
    medium: the medium of each group; None if there are as many of both, in the same order. With
      two axes, "parts q", media and groups are cut into equal parts, and it counts within a part:
      a device that holds one needs nothing of the others. Groups
      that share a medium through `medium` share the making of its keys and values, but each gets
      a copy of them; texts of one group share the arrays.
    factor: multiplies the scores (query times key) of a text with each token, before the mask
      (frame-aware attention); None is 1 everywhere.
    """

    states: Float[Array, "m t e"]
    mask: Bool[Array, "m t"] | None = None
    medium: Int[Array, "*parts q"] | None = None
    factor: Float[Array, "q p t"] | None = None

    def of_groups(self, media: Shaped[Array, "m ..."]) -> Shaped[Array, "q ..."]:
        """One row for each group, of its medium, from one for each medium."""
        if self.medium is None:
            return media
        if self.medium.ndim == 1:
            return media[self.medium]
        cut = media.reshape(len(self.medium), -1, *media.shape[1:])
        taken = jax.vmap(lambda part, rows: part[rows])(cut, self.medium)
        return taken.reshape(-1, *media.shape[1:])

    def made_of_groups(self, made: KeysValues, side_by_side: bool) -> KeysValues:
        """Keys and values, one row for each group; `side_by_side`: rows move with all their heads.

        Kernels read them so; heads apart, a TPU would copy all rows into another layout.
        """
        if self.medium is None:
            return made

        def one(y: Array) -> Array:
            if not side_by_side:
                return self.of_groups(y)
            m, h, t, k = y.shape
            rows = self.of_groups(y.swapaxes(1, 2).reshape(m, t, h * k))
            return rows.reshape(-1, t, h, k).swapaxes(1, 2)

        return KeysValues(*map(one, made))


class Seen(NamedTuple):
    """A `Memory` as all layers use it.

    added: what is added to the keys, and to the values, of every layer that a method may
      act on, "m t d".
    bias: what is added to the scores, "q 1 1 t".
    """

    memory: Memory
    added: tuple[Array | None, Array | None]
    bias: Array | None


class Attended(NamedTuple):
    """A `Memory` of which all layers' keys and values are made."""

    made: KeysValues
    seen: Seen

    @property
    def memory(self) -> Memory:
        """The memory whose keys and values these are."""
        return self.seen.memory
