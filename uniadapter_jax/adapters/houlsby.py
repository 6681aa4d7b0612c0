"""Sequential adapters (Houlsby et al., ICML 2019): a bottleneck after each sub-layer.

    z = z + U relu(D z + b_d) + b_u        before the residual; U starts at zero

Every tower has them: of BLIP also the layers of text and fusion, which are the same, and of the
decoder. `cross` is cross-attention.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from uniadapter_jax.adapters.base import Method, fill_place
from uniadapter_jax.adapters.bottleneck import Bottleneck
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.ranges import BELOW_ONE, at_least


def attach(backbone: Any, options: Any, rng: np.random.Generator | None) -> None:
    """Puts a bottleneck after those of a tower's sub-layers that `options.sites` names."""
    towers = backbone.towers()
    known = {site for tower in towers for site in tower.blocks.SUBLAYERS}
    if wrong := [site for site in options.sites if site not in known]:
        raise UserError(f"method.sites: {wrong[0]!r} is no sub-layer; choose of {sorted(known)}")
    for tower in towers:
        for site in (site for site in options.sites if site in tower.blocks.SUBLAYERS):
            name = f"after_{site}"
            size, dropout = options.bottleneck, options.dropout
            module = Bottleneck(tower, size, name=name, rng=rng, dropout=dropout)
            fill_place(tower.blocks, name, module)


METHOD = Method(
    name="houlsby",
    attach=attach,
    options={"bottleneck": 64, "sites": ("attn", "mlp"), "dropout": 0.0},
    ranges={"bottleneck": at_least(1), "dropout": BELOW_ONE},
    layered=True,
)
