"""The media that BLIP's texts attend to.

Several texts may look at one medium: their queries stand side by side, and its keys and values are
made once per layer and are never repeated.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from uniadapter_jax.backbones.attention import KeysValues
from uniadapter_jax.common.types import Array, Bool, Float, Int, Shaped


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Sets:
    """Media in order, cut into equal sets, each with as many groups as `of` has entries.

    of: for each group of a set, the place in the set of the medium that it attends to. Known when
      the program is built, so that rows are taken, and their gradients added, without a search: a
      device needs nothing of another, and a TPU writes no array of zeros first.
    """

    of: tuple[int, ...]

    @property
    def size(self) -> int:
        """Media of a set."""
        return max(self.of) + 1

    def rows(self, media: Shaped[Array, "m ..."]) -> Shaped[Array, "q ..."]:
        """One row for each group."""
        sets = media.reshape(-1, self.size, *media.shape[1:])
        taken = jnp.stack([sets[:, place] for place in self.of], axis=1)
        return taken.reshape(-1, *media.shape[1:])


class Memory(NamedTuple):
    """The m media that q groups of p texts attend to.

    states: hidden states of the media, e.g. a picture's patches or the words of a question.
    mask: False where a medium has padding; None if it has none.
    medium: the medium of each group; None if there are as many of both, in the same order. Groups
      that share a medium through it, or through `sets`, share the making of its keys and values,
      but each gets a copy of them; texts of one group share the arrays.
    sets: in place of `medium`, where what a group attends to repeats from set to set.
    factor: multiplies the scores (query times key) of a text with each token, before the mask
      (frame-aware attention); None is 1 everywhere.
    """

    states: Float[Array, "m t e"]
    mask: Bool[Array, "m t"] | None = None
    medium: Int[Array, " q"] | None = None
    factor: Float[Array, "q p t"] | None = None
    sets: Sets | None = None

    @property
    def groups(self) -> int:
        """How many groups there are."""
        media = self.states.shape[0]
        if self.sets is not None:
            return media // self.sets.size * len(self.sets.of)
        return media if self.medium is None else self.medium.size

    def of_groups(self, media: Shaped[Array, "m ..."]) -> Shaped[Array, "q ..."]:
        """One row for each group, of its medium, from one for each medium."""
        if self.sets is not None:
            return self.sets.rows(media)
        return media if self.medium is None else media[self.medium]

    def made_of_groups(self, made: KeysValues, side_by_side: bool) -> KeysValues:
        """Keys and values, one row for each group; `side_by_side`: rows move with all their heads.

        Kernels read them so; heads apart, a TPU would copy all rows into another layout.
        """
        if self.medium is None and self.sets is None:
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
