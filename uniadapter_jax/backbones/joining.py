"""Frames of a clip that become one sequence of tokens (TempMe: Shen et al., ICLR 2025).

A layer joins m neighbouring groups of frames into one, ahead of all that it does:

    each group's learnt position is added to its tokens
    class tokens of all come first, in the order of frames, then the patches of all
    a share of the tokens merges (`merging`), those alike in the states without positions

So attention looks over more and more frames. All class tokens stay, and give each frame its
features. Behind attention a layer merges further tokens within what is joined.

Frames that a clip does not have are padding: tokens of size 0. Groups that are missing at a join,
too, so that a clip of one frame, such as a picture, is not computed as one of twelve below.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from uniadapter_jax.backbones import merging, prefix, scan
from uniadapter_jax.backbones.merging import KEPT, Merging, Tokens
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Array, Bool, Float


class Step(NamedTuple):
    """What one layer does.

    joined: groups of frames that become one; 1 joins none.
    across: tokens that merge then; `within`: those that merge behind attention.
    positions: where the positions of the groups begin, among those of all joins.
    """

    joined: int
    across: int
    within: int
    positions: int


class Schedule(NamedTuple):
    """Where frames are joined, and how many tokens merge.

    frames: the most that a clip has; what all joins together join divides it.
    joins: (layer, how many groups it joins), by layer.
    merged: tokens of a frame that every layer below the first join merges.
    across, within: the shares of all tokens, class tokens included, that merge at a join, and
      behind attention from the first join on.
    """

    frames: int
    joins: tuple[tuple[int, int], ...]
    merged: int
    across: float
    within: float

    @property
    def positions(self) -> int:
        """Groups of frames that are joined, over all joins."""
        joined = [1, *(count for _, count in self.joins)]
        return sum(self.frames // math.prod(joined[:i]) for i in range(1, len(joined)))

    def steps(self, tokens: int, layers: int) -> tuple[Step, ...]:
        """Those of every layer, for so many tokens of a frame."""
        joins, steps, kept, groups, row = dict(self.joins), [], KEPT, self.frames, 0
        for layer in range(layers):
            joined, across = joins.get(layer, 1), 0
            if joined > 1:
                tokens, kept = tokens * joined, kept * joined
                across = min(int(tokens * self.across), (tokens - kept) // 2)
                tokens -= across
            most = self.merged if kept == KEPT else int(tokens * self.within)
            within = min(most, (tokens - kept) // 2)
            tokens -= within
            steps.append(Step(joined, across, within, row))
            if joined > 1:
                row, groups = row + groups, groups // joined
        return tuple(steps)


class Joins(Protocol):
    """What a method puts at the place `joins`; its layers are those that it acts on."""

    schedule: Schedule
    positions: Any  # a parameter "g d": of the groups at the first join, then at the second, ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clips:
    """Tokens of clips, group by group.

    groups: of a clip. kept: class tokens of a group. layer: the next one, of those that are run.
    They are part of the type, so that a layer that is recomputed is the same.
    """

    x: Float[Array, "r s d"]
    size: Float[Array, "r s"]
    groups: int = dataclasses.field(metadata={"static": True})
    kept: int = dataclasses.field(metadata={"static": True})
    layer: int = dataclasses.field(metadata={"static": True})


def join(clips: Clips, step: Step, positions: Float[Array, "g d"]) -> Clips:
    """Every `step.joined` groups as one, and fewer tokens of them."""
    count, kept = step.joined, clips.kept
    missing = -clips.groups % count
    groups = (clips.groups + missing) // count

    def by_clip(y: Array) -> Array:
        """ "c g s ...", with padding in place of missing groups."""
        y = y.reshape(-1, clips.groups, *y.shape[1:])
        return jnp.pad(y, [(0, 0), (0, missing), *[(0, 0)] * (y.ndim - 2)])

    def together(y: Array) -> Array:
        """ "r s ..." of groups that are joined, class tokens first."""
        y = y.reshape(-1, count, *y.shape[2:])
        first, rest = y[:, :, :kept], y[:, :, kept:]
        return jnp.concatenate([z.reshape(len(z), -1, *z.shape[3:]) for z in (first, rest)], axis=1)

    x, size = by_clip(clips.x), together(by_clip(clips.size))
    rows = positions[step.positions :][: groups * count].astype(x.dtype)
    moved = together(x + rows[None, :, None])
    metric = together(x)
    tokens = merging.fewer(Tokens(moved, size), metric, step.across, kept * count)
    return Clips(*tokens, groups=groups, kept=kept * count, layer=clips.layer)


def run(
    blocks: Any,
    x: Float[Array, "b s d"],
    frame_mask: Bool[Array, "c f"] | None,
    joins: Joins,
    *,
    layers: int,
    entered: bool,
    **options: Any,
) -> Float[Array, "b 1 d"]:
    """The class token of every frame behind the last layer; no layer is scanned.

    Args:
      frame_mask: False at frames that a clip does not have; b = c f frames, clip by clip. None:
        every picture is a clip of its own.
      entered: whether x goes into the layers above the cut, else into the first of all. Layers
        below the cut are plain.
    """
    mask = jnp.ones((len(x), 1), bool) if frame_mask is None else frame_mask
    frames, at = mask.shape[1], prefix.cut_at(blocks, layers)
    if frames > joins.schedule.frames:
        raise UserError(
            f"method.frames={joins.schedule.frames}: a clip of {frames} frames has more; the "
            "method has no positions for them"
        )
    steps = joins.schedule.steps(x.shape[1], layers - at)
    positions = joins.positions[...]

    def call(block: Any, clips: Clips, layer: scan.LayerInputs, own: None) -> tuple[Clips, None]:
        following = clips.layer + 1
        if clips.layer < at:
            x = block(clips.x, None, layer)
            return dataclasses.replace(clips, x=x, layer=following), None
        step = steps[clips.layer - at]
        if step.joined > 1:
            clips = join(clips, step, positions)
        x, size = block(clips.x, None, layer, Merging(step.within, clips.size, clips.kept))
        return dataclasses.replace(clips, x=x, size=size, layer=following), None

    size = jnp.broadcast_to(mask.reshape(-1, 1), x.shape[:2]).astype(jnp.float32)
    first = Clips(x, size, groups=frames, kept=KEPT, layer=at if entered else 0)
    last, _ = scan.collect_layers(
        call, blocks, first, None, layers, unrolled=True, above_only=entered, **options
    )
    features = last.x[:, : last.kept].reshape(len(mask), -1, x.shape[-1])[:, :frames]
    return features.reshape(len(x), 1, -1)
