"""The option `from_layer` of methods that act in layers: they begin at that layer of every tower.

The towers are cut before such a method attaches. So what it finds are the layers above the cut
(`backbone.towers()`, `targets.modules_of`) and what follows them; nothing below, patches and words
among it, is adapted or trains, and no gradient enters it. At 0 there is no cut.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from uniadapter_jax.adapters.base import Method
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.ranges import at_least

NAME = "from_layer"


def with_from_layer(method: Method) -> Method:
    """The method with that option."""

    def attach(backbone: Any, options: Any, rng: np.random.Generator | None) -> None:
        cut(backbone, options[NAME])
        method.attach(backbone, options, rng)

    def merge(backbone: Any) -> None:
        assert method.merge is not None
        method.merge(backbone)
        for tower in backbone.towers():
            tower.join()

    return dataclasses.replace(
        method,
        attach=attach,
        merge=None if method.merge is None else merge,
        options={**method.options, NAME: 0},
        ranges={**method.ranges, NAME: at_least(0)},
    )


def cut(backbone: Any, at: int) -> None:
    """Cuts every tower ahead of layer `at`; raises `UserError` if one has none left above."""
    for tower in backbone.towers():
        if at >= tower.layers:
            raise UserError(
                f"method.{NAME}={at}: the {tower.name} tower has {tower.layers} layers; choose "
                f"at most {tower.layers - 1}"
            )
        tower.from_layer(at)
