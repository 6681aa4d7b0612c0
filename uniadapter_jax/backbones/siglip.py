"""SigLIP: a ViT and a bidirectional text transformer (Zhai et al., 2023, arXiv 2303.15343).

Covers transformers' `SiglipModel`. Against CLIP: no CLS token and no LayerNorm before the layers,
but a head that attends to all patches with one learned query (MAP); no causal mask, and a text is
read at its last position, which is usually padding; a bias beside the temperature.
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from uniadapter_jax.backbones import functions, scan
from uniadapter_jax.backbones.attention import Attention
from uniadapter_jax.backbones.linear import LayerNorm, Linear, Rng, random
from uniadapter_jax.backbones.siglip_config import SigLIPConfig
from uniadapter_jax.backbones.text_transformer import TextTransformer
from uniadapter_jax.backbones.two_towers import TwoTowers
from uniadapter_jax.backbones.vit import ViT
from uniadapter_jax.common.types import Array, Float, Int


class PoolingAttention(Attention):
    """One learned query that attends to all tokens of a picture."""

    def __init__(self, width: int, heads: int, *, rng: Rng):
        std = width**-0.5
        self.probe = random(rng, std, width)
        super().__init__(width, heads, std=std, rng=rng)

    def pool(self, x: Float[Array, "b s d"], layer: scan.LayerInputs) -> Float[Array, "b d"]:
        """The query's reading of each picture."""
        probe = jnp.broadcast_to(self.probe[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
        return self(probe, self.keys_and_values(x, layer), layer)[:, 0]


class VisionTower(ViT):
    """Pictures to joint embeddings: z + projection(act(fc1(ln_pool(z)))), z = attn(ln_post(x)).

    The last linear layer of the head is called `projection`, as that of CLIP's towers: methods
    that train a tower's last layer find it.
    """

    def __init__(self, config: SigLIPConfig, remat: str, *, rng: Rng):
        size, width = config.vision, config.vision.width
        super().__init__(config, remat, std=width**-0.5, class_token=False, rng=rng)
        self.ln_post = LayerNorm(width, eps=size.eps)
        self.attn = PoolingAttention(width, size.heads, rng=rng)
        self.ln_pool = LayerNorm(width, eps=size.eps)
        self.fc1 = Linear(width, size.hidden, std=width**-0.5, rng=rng)
        self.projection = Linear(size.hidden, width, std=size.hidden**-0.5, rng=rng)

    def head(self, x: Float[Array, "b s d"], key: Array | None) -> Float[Array, "b c"]:
        layer = scan.LayerInputs(key=scan.LayerInputs(key=key).key_of("head"))
        z = self.attn.pool(self.ln_post(x), layer)
        activation = functions.ACTIVATIONS[self.config.vision.activation]
        return z + self.projection(activation(self.fc1(self.ln_pool(z), layer)), layer)


class TextTower(TextTransformer):
    """Token ids to joint embeddings: projection(ln_final(tokens)[last position]).

    Every text has all of the backbone's positions, as in pre-training: shorter rows are padded
    here, so that features do not depend on how long the rows are.
    """

    CAUSAL = False
    FIRST_WORD = 0

    def __init__(self, config: SigLIPConfig, remat: str, *, rng: Rng):
        super().__init__(config, remat, projection_bias=True, rng=rng)

    def padded(self, ids: Int[Array, "b l"], rows: int) -> Int[Array, "b m"]:
        missing = self.config.positions - rows - ids.shape[1]
        return jnp.pad(ids, ((0, 0), (0, missing)), constant_values=self.config.pad_id)

    def state_of_text(
        self, x: Float[Array, "b p d"], ids: Int[Array, "b m"], rows: int
    ) -> Float[Array, "b d"]:
        return x[:, -1]


class SigLIP(TwoTowers):
    """Both towers, the temperature and the bias."""

    VISION, TEXT = VisionTower, TextTower
    # Section 3.2 of the paper: most pairs of a batch are negative, so the bias starts low.
    INITIAL_SCALE = math.log(10.0)
    INITIAL_BIAS = -10.0
