"""Partial fine-tuning: the last layers of every tower train, all of their parameters.

The layers below keep their weights, and no gradient enters them. What follows the layers, such as
the last LayerNorm and the projection, stays frozen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx

from uniadapter_jax.adapters.base import Method
from uniadapter_jax.common.ranges import at_least


class Trained(nnx.Param):
    """A parameter of the backbone that trains."""


def train_all(module: nnx.Module) -> None:
    """Makes every parameter of a module of the backbone one that trains."""
    for _, node in list(nnx.iter_modules(module, graph=True)):
        for name, value in list(vars(node).items()):
            if type(value) is nnx.Param:
                setattr(node, name, Trained(value[...]))


def attach(backbone: Any, options: Any, rng: np.random.Generator | None) -> None:
    """Cuts every tower ahead of its last `options.layers` layers; a shallower one trains whole."""
    for tower in backbone.towers():
        train_all(tower.from_layer(tower.layers - options.layers).blocks)


def merge(backbone: Any) -> None:
    """Joins the layers of every tower again."""
    for tower in backbone.towers():
        tower.owner.blocks = tower.owner.blocks.joined()


METHOD = Method(
    name="partial",
    attach=attach,
    merge=merge,
    options={"layers": 1},
    ranges={"layers": at_least(1)},
    trainable=Trained,
)
