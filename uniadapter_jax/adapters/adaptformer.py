"""AdaptFormer (Chen et al., NeurIPS 2022): a scaled bottleneck parallel to every MLP.

    z = z + mlp(ln_2(z)) + scale * (U drop(relu(D z + b_d)) + b_u)        U starts at zero

As in the authors' code: D is uniform in +-1/sqrt(width), the bottleneck reads the residual stream
without a LayerNorm of its own, and what it adds passes by stochastic depth. They drop out a tenth
of its channels in training. Every tower has them; theirs is a vision transformer alone. In BLIP's
text layers, which are post-LayerNorm, the sum goes through the layer's LayerNorm.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from uniadapter_jax.adapters.base import Method, fill_place
from uniadapter_jax.adapters.bottleneck import Bottleneck
from uniadapter_jax.common.ranges import BELOW_ONE, POSITIVE, at_least


def attach(backbone: Any, options: Any, rng: np.random.Generator | None) -> None:
    """Puts a bottleneck beside the MLP of every layer."""
    for tower in backbone.towers():
        module = Bottleneck(
            tower,
            options.bottleneck,
            name="beside_mlp",
            rng=rng,
            parallel=True,
            scale=options.scale,
            dropout=options.dropout,
        )
        fill_place(tower.blocks, "beside_mlp", module)


METHOD = Method(
    name="adaptformer",
    attach=attach,
    options={"bottleneck": 64, "scale": 0.1, "dropout": 0.1},
    ranges={"bottleneck": at_least(1), "scale": POSITIVE, "dropout": BELOW_ONE},
    layered=True,
)
