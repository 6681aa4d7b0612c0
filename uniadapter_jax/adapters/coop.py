"""CoOp (Zhou et al., IJCV 2022): learnt tokens ahead of the words of every text.

    [SOS] t_1 ... t_n words [EOS]

They are real tokens: they have positions, and the words' and EOS' move by n. They start normal with
a deviation of .02. As in the authors' code with the class at the end; theirs cuts texts to 77
tokens with the learnt ones among them, here such a text is refused. SigLIP's texts have no SOS: the
tokens stand first, and as many fewer of padding last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx

from uniadapter_jax.adapters.base import Method, fill_place
from uniadapter_jax.adapters.bottleneck import random_normal
from uniadapter_jax.adapters.rows import Rows, first_word
from uniadapter_jax.backbones import scan
from uniadapter_jax.common.ranges import at_least
from uniadapter_jax.common.types import Array, Float


class Context(nnx.Module):
    """So many learnt tokens."""

    def __init__(self, count: int, width: int, ahead: int, rng: np.random.Generator | None):
        self.tokens = random_normal(rng, 0.02, count, width)
        self.rows, self.ahead = count, ahead

    def __call__(
        self, y: Float[Array, "b l d"], x: Float[Array, "b l d"], layer: scan.LayerInputs
    ) -> Float[Array, "b m d"]:
        return Rows(self.rows, self.ahead).put(y, self.tokens[...], over=False)


def attach(backbone: Any, options: Any, rng: np.random.Generator | None) -> None:
    """Puts tokens into the text tower."""
    context = Context(options.tokens, backbone.config.text.width, first_word(backbone), rng)
    fill_place(backbone.text, "before", context)


METHOD = Method(name="coop", attach=attach, options={"tokens": 16}, ranges={"tokens": at_least(1)})
