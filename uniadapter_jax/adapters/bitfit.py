"""BitFit (Ben Zaken et al., ACL 2022): every bias of the backbone trains, LayerNorm's too."""

from __future__ import annotations

from uniadapter_jax.adapters.base import Method, attach_nothing, merge_nothing
from uniadapter_jax.adapters.targets import biases

METHOD = Method(
    name="bitfit",
    attach=attach_nothing,
    trainable=biases(),
    merge=merge_nothing,
    layered=True,
)
