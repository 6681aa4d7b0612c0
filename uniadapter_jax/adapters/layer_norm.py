"""LayerNorm tuning (Zhao et al., ICLR 2024): scale and bias of every LayerNorm train."""

from __future__ import annotations

from uniadapter_jax.adapters.base import Method, attach_nothing, merge_nothing
from uniadapter_jax.adapters.targets import norms

METHOD = Method(
    name="layer_norm",
    attach=attach_nothing,
    trainable=norms(),
    merge=merge_nothing,
    layered=True,
)
