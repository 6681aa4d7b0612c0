"""LoRA with one A for queries, keys and values (TempMe's, Shen et al., ICLR 2025).

    [q; k; v] = [q; k; v] + (x A) [B_q, B_k, B_v]        A: width x rank, each B: rank x width

in self-attention of every tower, with a scale of one. A is uniform in +-1/sqrt(width), the Bs start
at zero. BLIP's cross-attention has none: its queries and keys are not made of the same states.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from uniadapter_jax.adapters import lora
from uniadapter_jax.adapters.base import Method, fill_place
from uniadapter_jax.common.ranges import at_least


def attach(backbone: Any, options: Any, rng: np.random.Generator | None) -> None:
    """Puts branches beside q, k and v of self-attention; they hold one A."""
    rank = options.rank
    for tower in backbone.towers():
        shared: Any = None
        for name in ("q", "k", "v"):
            linear = getattr(tower.blocks.attn, name)
            path = f"{tower.name}.attn.{name}"
            draws = rng if shared is None else None
            branch = lora.LowRank(path, linear.kernel.shape, rank, float(rank), 0.0, draws)
            shared = branch.a_kernel if shared is None else shared
            branch.a_kernel = shared
            fill_place(linear, "delta", branch)


METHOD = Method(
    name="lora_shared",
    attach=attach,
    merge=lora.merge,
    options={"rank": 8},
    ranges={"rank": at_least(1)},
    layered=True,
)
