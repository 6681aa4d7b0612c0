"""CLIP-Adapter (Gao et al., IJCV 2024): a bottleneck on the features of a tower, which are mixed.

    f' = ratio * relu(relu(f W_1) W_2) + (1 - ratio) * f          W_1 narrows by `reduction`

without biases, before features are normalised. No gradient enters the backbone. As in the authors'
code only pictures have one; `towers` may name the texts, too. The start is not the frozen model:
both kernels are uniform in +-1/sqrt(fan in).
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import nnx

from uniadapter_jax.adapters.base import Method, fill_place
from uniadapter_jax.adapters.bottleneck import kaiming
from uniadapter_jax.backbones import functions, scan
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.ranges import SHARE, at_least
from uniadapter_jax.common.types import Array, Float

TOWERS = ("vision", "text")


class FeatureAdapter(nnx.Module):
    """f' of features of `width` channels."""

    def __init__(self, width: int, narrow: int, ratio: float, rng: np.random.Generator | None):
        self.down_kernel = kaiming(rng, width, narrow)
        self.up_kernel = kaiming(rng, narrow, width)
        self.ratio = ratio

    def __call__(
        self, y: Float[Array, "b c"], x: Float[Array, "b c"], layer: scan.LayerInputs
    ) -> Float[Array, "b c"]:
        down = jax.nn.relu(functions.matmul(y, self.down_kernel[...]))
        up = jax.nn.relu(functions.matmul(down, self.up_kernel[...]))
        return self.ratio * up + (1 - self.ratio) * y


def attach(backbone: Any, options: Any, rng: np.random.Generator | None) -> None:
    """Puts an adapter behind each tower that `options.towers` names."""
    wrong = [name for name in options.towers if name not in TOWERS]
    if wrong or not options.towers:
        raise UserError(f"method.towers={tuple(options.towers)}: choose of {', '.join(TOWERS)}")
    width = backbone.config.embed
    for name in options.towers:
        adapter = FeatureAdapter(width, max(width // options.reduction, 1), options.ratio, rng)
        fill_place(backbone, f"after_{name}", adapter)


METHOD = Method(
    name="clip_adapter",
    attach=attach,
    options={"reduction": 4, "ratio": 0.2, "towers": ("vision",)},
    ranges={"reduction": at_least(1), "ratio": SHARE},
    behind_layers=True,
)
