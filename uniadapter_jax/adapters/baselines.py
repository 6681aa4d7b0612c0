"""Baselines that add nothing to the backbone: they differ in what trains."""

from __future__ import annotations

from typing import Any

from flax import nnx

from uniadapter_jax.adapters.base import Method, attach_nothing, merge_nothing

# The last linear layers: of CLIP's towers, and BLIP's heads.
_PROJECTIONS = ("projection", "vision_proj", "text_proj", "itm_head")


def _is_projection(path: tuple[Any, ...], _: Any) -> bool:
    return any(name in path for name in _PROJECTIONS)


ZERO_SHOT = Method(name="zero_shot", attach=attach_nothing, trainable=None)
FULL = Method(
    name="full",
    attach=attach_nothing,
    trainable=nnx.Param,
    merge=merge_nothing,
    trains_backbone=True,
)
PROJECTION = Method(
    name="projection",
    attach=attach_nothing,
    trainable=nnx.All(nnx.Param, _is_projection),
    merge=merge_nothing,
    behind_layers=True,
)
