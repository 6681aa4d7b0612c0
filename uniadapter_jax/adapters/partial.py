"""Partial fine-tuning: the last layers of every tower train, all of their parameters.

The layers below keep their weights, and no gradient enters them. What follows the layers, such as
the last LayerNorm and the projection, stays frozen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx

from uniadapter_jax.adapters.base import Method
from uniadapter_jax.backbones.scan import retype
from uniadapter_jax.common.ranges import at_least


class Trained(nnx.Param):
    """A parameter of the backbone that trains."""


def attach(backbone: Any, options: Any, rng: np.random.Generator | None) -> None:
    """Cuts every tower ahead of its last `options.layers` layers; a shallower one trains whole."""
    for tower in backbone.towers():
        upper = tower.from_layer(tower.layers - options.layers)
        retype(upper.blocks, nnx.Param, Trained)


def merge(backbone: Any) -> None:
    """Joins the layers of every tower again."""
    for tower in backbone.towers():
        tower.join()


METHOD = Method(
    name="partial",
    attach=attach,
    merge=merge,
    options={"layers": 1},
    ranges={"layers": at_least(1)},
    trainable=Trained,
)
