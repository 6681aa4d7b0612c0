"""CLIP: a ViT and a causal text transformer with a joint embedding (Radford et al., 2021).

Covers every ViT CLIP in HuggingFace's layout: B/32, B/16, L/14, L/14@336 and odd sizes. The
activation, the epsilon of LayerNorm, the heads and the rule for the EOS position come from the
config; none is guessed.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from uniadapter_jax.backbones import functions, layers
from uniadapter_jax.backbones.huggingface_config import (
    TowerConfig,
    check_known,
    check_pictures,
    check_size,
    checked,
    section,
)
from uniadapter_jax.backbones.pixels import CLIP_PIXELS, PixelStatistics, picture_patches
from uniadapter_jax.backbones.two_towers import TwoTowers
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import normal
from uniadapter_jax.common.types import Array, Float, Int, PyTree


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """The function a CLIP computes, apart from its weights."""

    pixels: ClassVar[PixelStatistics] = CLIP_PIXELS
    has_logit_bias: ClassVar[bool] = False
    pooling_reads: ClassVar[tuple[str, ...]] = ()
    vision: TowerConfig
    text: TowerConfig
    image_size: int
    patch_size: int
    vocab_size: int
    positions: int
    embed: int
    eos_id: int

    def __post_init__(self) -> None:
        check_pictures(self.image_size, self.patch_size)
        check_size("vocab_size", self.vocab_size)
        check_size("max_position_embeddings", self.positions)
        check_size("projection_dim", self.embed)
        if self.eos_id != LARGEST_ID and not 0 <= self.eos_id < self.vocab_size:
            raise UserError(
                f"text_config.eos_token_id={self.eos_id}: expected an id below "
                f"vocab_size={self.vocab_size}, or {LARGEST_ID} for the largest in a text"
            )

    @property
    def patches(self) -> int:
        """Patches of one picture."""
        return (self.image_size // self.patch_size) ** 2

    def tokens(self, tower: str, words: int) -> int:
        """Of a picture, the CLS among them, or of a text."""
        return self.patches + 1 if tower == "vision" else words

    @property
    def eos_is_largest_id(self) -> bool:
        """Whether a text's EOS is its largest id: by OpenAI's rule, or as the last of all ids."""
        return self.eos_id in (LARGEST_ID, self.vocab_size - 1)

    def function(self) -> dict[str, Any]:
        """What of the config the fingerprint covers: one value for one function."""
        fields = dataclasses.asdict(self)
        if self.eos_is_largest_id:  # two ways to write the same rule
            fields["eos_id"] = "largest"
        return fields

    def check_ids(self, ids: np.ndarray) -> None:
        """Raises `UserError` unless all host ids "n l" are known and every text has an EOS."""
        check_known(ids, self.vocab_size)
        if self.eos_id != LARGEST_ID:
            bad = np.flatnonzero(~(ids == self.eos_id).any(1))
            if bad.size:
                raise UserError(f"text {bad[0]} has no EOS (id {self.eos_id})")

    @classmethod
    def from_huggingface(cls, config: dict[str, Any]) -> CLIPConfig:
        """Reads the `config.json` of a transformers `CLIPModel`.

        Fields that the file leaves out have the value that transformers gives them.

        Raises:
          UserError: a field has no value that a CLIP could have.
        """
        vision = section(config, "vision_config", _HF_VISION)
        text = section(config, "text_config", _HF_TEXT)
        embed = checked("projection_dim", config.get("projection_dim", 512), int)
        return cls(
            vision=TowerConfig.from_section(vision),
            text=TowerConfig.from_section(text),
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            vocab_size=text["vocab_size"],
            positions=text["max_position_embeddings"],
            embed=embed,
            eos_id=text["eos_token_id"],
        )

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers' `CLIPModel` reads."""
        text = {
            **self.text.to_section(),
            "projection_dim": self.embed,
            "model_type": "clip_text_model",
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.positions,
            "eos_token_id": self.eos_id,
        }
        vision = {
            **self.vision.to_section(),
            "projection_dim": self.embed,
            "model_type": "clip_vision_model",
            "image_size": self.image_size,
            "patch_size": self.patch_size,
        }
        return {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": self.embed,
            "text_config": text,
            "vision_config": vision,
        }


# What transformers assumes for a field that a config.json leaves out.
_HF_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_HF_TEXT = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# transformers' mark for files whose config predates a correct eos_token_id: OpenAI's rule holds.
LARGEST_ID = 2


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


def _normal(rng: layers.Rng, std: float, *shape: int) -> nnx.Param:
    return nnx.Param(normal(rng, std, *shape))


class VisionTower(nnx.Module):
    """Pictures to joint embeddings: (ln_post(tokens) @ projection)[CLS]."""

    def __init__(self, config: CLIPConfig, remat: str, *, rng: layers.Rng):
        width, patch = config.vision.width, config.patch_size
        self.patch_embedding = layers.Linear(
            3 * patch * patch, width, use_bias=False, std=0.02, rng=rng
        )
        self.class_embedding = _normal(rng, width**-0.5, width)
        self.position_embedding = _normal(rng, width**-0.5, 1 + config.patches, width)
        self.ln_pre = layers.LayerNorm(width, eps=config.vision.eps)
        self.blocks = _blocks(config.vision, rng)
        self.ln_post = layers.LayerNorm(width, eps=config.vision.eps)
        self.projection = layers.Linear(
            width, config.embed, use_bias=False, std=width**-0.5, rng=rng
        )
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
        cls = self.class_embedding[...].astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls, (len(x), 1, cls.size)), x], axis=1)
        x = self.ln_pre(x + self.position_embedding[...].astype(x.dtype)[None])
        x = layers.run_stack(
            self.blocks,
            x,
            layers=self.config.vision.layers,
            remat=self.remat,
            shared=shared,
            key=key,
        )
        return self.projection(self.ln_post(x[:, 0]))


class TextTower(nnx.Module):
    """Token ids to joint embeddings: (ln_final(tokens) @ projection)[EOS].

    The mask is causal only: padding stands behind the EOS, so nothing that counts sees it.
    """

    def __init__(self, config: CLIPConfig, remat: str, *, rng: layers.Rng):
        width = config.text.width
        self.token_embedding = _normal(rng, 0.02, config.vocab_size, width)
        self.position_embedding = _normal(rng, 0.01, config.positions, width)
        self.blocks = _blocks(config.text, rng)
        self.ln_final = layers.LayerNorm(width, eps=config.text.eps)
        self.projection = layers.Linear(
            width, config.embed, use_bias=False, std=width**-0.5, rng=rng
        )
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
        length = ids.shape[1]
        if length > self.config.positions:
            raise UserError(
                f"texts of {length} tokens, but this backbone has {self.config.positions} positions"
            )
        x = self.token_embedding[...][ids].astype(dtype)
        x = x + self.position_embedding[...][:length].astype(dtype)[None]
        x = layers.run_stack(
            self.blocks,
            x,
            layers=self.config.text.layers,
            remat=self.remat,
            mask=functions.causal_mask(length),
            shared=shared,
            key=key,
        )
        # Row by row: an index into rows and words at once would sum over all devices of a batch.
        eos = eos_position(ids, self.config.eos_id)
        at_eos = jnp.take_along_axis(x, eos[:, None, None], axis=1)[:, 0]
        return self.projection(self.ln_final(at_eos))


def eos_position(ids: Int[Array, "b l"], eos_id: int) -> Int[Array, " b"]:
    """Where each text ends: the largest id (legacy configs), else the first `eos_id`.

    A text without an EOS is refused where ids are made (`CLIPConfig.check_ids`), not inside a
    compiled program.
    """
    if eos_id == LARGEST_ID:
        return ids.argmax(-1)
    return (ids == eos_id).argmax(-1)


class CLIP(TwoTowers):
    """Both towers and the temperature."""

    def __init__(
        self,
        config: CLIPConfig,
        *,
        rng: layers.Rng,
        dtype: str = "float32",
        remat: str = "none",
        frame_chunks: int = 0,
    ):
        super().__init__(config, dtype=dtype, frame_chunks=frame_chunks)
        temperature = 0.07  # CLIP, section 2.5
        self.logit_scale = nnx.Param(jnp.asarray(-math.log(temperature), jnp.float32))
        self.text = TextTower(config, remat, rng=rng)
        self.vision = VisionTower(config, remat, rng=rng)
