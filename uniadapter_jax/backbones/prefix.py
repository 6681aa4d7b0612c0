"""The frozen part of a tower, ahead of all that a method does: computed once, and entered again.

Where a tower is cut (`scan.Cut`), it is the states "b s d" that enter the layers above; where a
network at `side` reads all layers, the states "b z s d" of all; else what the head reads of the
states behind the last layer. `known` gives it, and `enter` goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from uniadapter_jax.backbones import layers
from uniadapter_jax.common.types import Array, Float

States = Float[Array, "z b s d"] | None


def cut_at(blocks: Any, count: int) -> int:
    """The first layer that a method may act on, of a tower of so many layers; 0: it is not cut."""
    return blocks.segments(count)[-1].rows.start


def known(
    blocks: Any,
    x: Float[Array, "b s d"],
    *,
    keep: bool,
    layers_: int,
    mask: Array | None,
    read: Callable[[Array], Array],
) -> Float[Array, "b ..."]:
    """The frozen part, from what enters the first layer; `read`: what the head reads of states."""
    at = cut_at(blocks, layers_)
    if at:
        below = blocks.segments(layers_)[0].stack
        return layers.run_stack(below, x, layers=at, remat="none", mask=mask)
    last, states = layers.run_and_keep(
        blocks, x, keep=keep, layers=layers_, remat="none", mask=mask
    )
    return read(last) if states is None else jnp.moveaxis(states, 0, 1)


def enter(
    blocks: Any, part: Float[Array, "b ..."], *, keep: bool, **options: Any
) -> tuple[Float[Array, "b ..."], States]:
    """As `layers.run_and_keep` with these options, from the frozen part.

    Where that is what the head reads, it is returned as it is.
    """
    if cut_at(blocks, options["layers"]):
        return layers.run_and_keep(blocks, part, keep=keep, above_only=True, **options)
    if not keep:
        return part, None
    states = jnp.moveaxis(part, 1, 0)
    return states[-1], states
