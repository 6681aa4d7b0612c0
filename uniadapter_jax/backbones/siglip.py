"""SigLIP: a ViT and a bidirectional text transformer (Zhai et al., 2023, arXiv 2303.15343).

Covers transformers' `SiglipModel`. Against CLIP: no CLS token and no LayerNorm before the layers,
but a head that attends to all patches with one learned query (MAP); no causal mask, and a text is
read at its last position, which is usually padding; a bias beside the temperature.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from flax import nnx

from uniadapter_jax.backbones import functions, layers, scan
from uniadapter_jax.backbones.huggingface_config import TowerConfig
from uniadapter_jax.backbones.pixels import picture_patches
from uniadapter_jax.backbones.siglip_config import SigLIPConfig
from uniadapter_jax.backbones.two_towers import TwoTowers
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import normal
from uniadapter_jax.common.types import Array, Float, Int, PyTree


def _blocks(config: TowerConfig, rng: layers.Rng) -> layers.Block:
    return layers.Block(
        config.width,
        config.hidden,
        config.heads,
        config.layers,
        activation=config.activation,
        eps=config.eps,
        rng=rng,
    )


class PoolingAttention(nnx.Module):
    """One learned query that attends to all tokens of a picture.

    Its linear layers have the place `delta`, as all have.
    """

    def __init__(self, width: int, heads: int, *, rng: layers.Rng):
        std = width**-0.5
        self.probe = nnx.Param(normal(rng, std, width))
        self.q = layers.Linear(width, width, std=std, rng=rng)
        self.k = layers.Linear(width, width, std=std, rng=rng)
        self.v = layers.Linear(width, width, std=std, rng=rng)
        self.out = layers.Linear(width, width, std=std, rng=rng)
        self.heads = heads

    def __call__(self, x: Float[Array, "b s d"], layer: scan.LayerInputs) -> Float[Array, "b d"]:
        def heads_first(y: Array) -> Array:
            return y.reshape(*y.shape[:2], self.heads, -1).swapaxes(1, 2)

        probe = jnp.broadcast_to(self.probe[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
        q, k, v = self.q(probe, layer), self.k(x, layer), self.v(x, layer)
        z = layers.attend(heads_first(q), heads_first(k), heads_first(v), None)
        return self.out(z.swapaxes(1, 2).reshape(len(x), -1), layer)


class VisionTower(nnx.Module):
    """Pictures to joint embeddings: z + projection(act(fc1(ln_pool(z)))), z = attn(ln_post(x)).

    The last linear layer of the head is called `projection`, as that of CLIP's towers: methods
    that train a tower's last layer find it.
    """

    def __init__(self, config: SigLIPConfig, remat: str, *, rng: layers.Rng):
        size, patch = config.vision, config.patch_size
        width = size.width
        self.patch_embedding = layers.Linear(3 * patch * patch, width, std=0.02, rng=rng)
        self.position_embedding = nnx.Param(normal(rng, width**-0.5, config.patches, width))
        self.blocks = _blocks(size, rng)
        self.ln_post = layers.LayerNorm(width, eps=size.eps)
        self.attn = PoolingAttention(width, size.heads, rng=rng)
        self.ln_pool = layers.LayerNorm(width, eps=size.eps)
        self.fc1 = layers.Linear(width, size.hidden, std=width**-0.5, rng=rng)
        self.projection = layers.Linear(size.hidden, width, std=size.hidden**-0.5, rng=rng)
        self.config = config
        self.remat = remat

    def __call__(
        self,
        pixels: Array,
        *,
        dtype: jnp.dtype,
        shared: PyTree | None = None,
        key: Array | None = None,
    ) -> Float[Array, "b c"]:
        x = self.patch_embedding(picture_patches(pixels, self.config, dtype))
        x = layers.run_stack(
            self.blocks,
            x + self.position_embedding[...].astype(x.dtype)[None],
            layers=self.config.vision.layers,
            remat=self.remat,
            shared=shared,
            key=key,
        )
        head = scan.LayerInputs(key=scan.LayerInputs(key=key).key_of("head"))
        z = self.attn(self.ln_post(x), head)
        activation = functions.ACTIVATIONS[self.config.vision.activation]
        return z + self.projection(activation(self.fc1(self.ln_pool(z), head)), head)


class TextTower(nnx.Module):
    """Token ids to joint embeddings: projection(ln_final(tokens)[last position]).

    Every text has all of the backbone's positions, as in pre-training: shorter rows are padded
    here, so that features do not depend on how long the rows are.
    """

    def __init__(self, config: SigLIPConfig, remat: str, *, rng: layers.Rng):
        width = config.text.width
        self.token_embedding = nnx.Param(normal(rng, 0.02, config.vocab_size, width))
        self.position_embedding = nnx.Param(normal(rng, 0.01, config.positions, width))
        self.blocks = _blocks(config.text, rng)
        self.ln_final = layers.LayerNorm(width, eps=config.text.eps)
        self.projection = layers.Linear(width, config.embed, std=width**-0.5, rng=rng)
        self.config = config
        self.remat = remat

    def __call__(
        self,
        ids: Int[Array, "b l"],
        *,
        dtype: jnp.dtype,
        shared: PyTree | None = None,
        key: Array | None = None,
    ) -> Float[Array, "b c"]:
        length, positions = ids.shape[1], self.config.positions
        if length > positions:
            raise UserError(
                f"texts of {length} tokens, but this backbone has {positions} positions"
            )
        pad = self.config.pad_id
        ids = jnp.pad(ids, ((0, 0), (0, positions - length)), constant_values=pad)
        x = self.token_embedding[...][ids].astype(dtype)
        x = layers.run_stack(
            self.blocks,
            x + self.position_embedding[...].astype(dtype)[None],
            layers=self.config.text.layers,
            remat=self.remat,
            shared=shared,
            key=key,
        )
        return self.projection(self.ln_final(x[:, -1]))


class SigLIP(TwoTowers):
    """Both towers, the temperature and the bias."""

    def __init__(
        self,
        config: SigLIPConfig,
        *,
        rng: layers.Rng,
        dtype: str = "float32",
        remat: str = "none",
        frame_chunks: int = 0,
    ):
        super().__init__(config, dtype=dtype, frame_chunks=frame_chunks)
        # Section 3.2 of the paper: most pairs of a batch are negative, so the bias starts low.
        self.logit_scale = nnx.Param(jnp.asarray(math.log(10.0), jnp.float32))
        self.logit_bias = nnx.Param(jnp.asarray(-10.0, jnp.float32))
        self.text = TextTower(config, remat, rng=rng)
        self.vision = VisionTower(config, remat, rng=rng)
