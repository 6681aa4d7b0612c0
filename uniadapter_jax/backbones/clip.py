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

from uniadapter_jax.backbones import joining
from uniadapter_jax.backbones.huggingface_config import (
    HF_TOWER,
    VisionLanguageConfig,
    check_pictures,
    checked,
    section,
)
from uniadapter_jax.backbones.linear import LayerNorm, Linear, Rng
from uniadapter_jax.backbones.pixels import CLIP_PIXELS, PixelStatistics
from uniadapter_jax.backbones.text_transformer import TextTransformer
from uniadapter_jax.backbones.two_towers import TwoTowers
from uniadapter_jax.backbones.vit import ViT
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class CLIPConfig(VisionLanguageConfig):
    """The function a CLIP computes, apart from its weights."""

    pixels: ClassVar[PixelStatistics] = CLIP_PIXELS
    has_logit_bias: ClassVar[bool] = False
    pooling_reads: ClassVar[tuple[str, ...]] = ()
    eos_id: int

    def __post_init__(self) -> None:
        check_pictures(self.image_size, self.patch_size)
        self.check_sizes("projection_dim")
        largest = f", or {LARGEST_ID} for the largest in a text"
        self.check_id("eos_token_id", self.eos_id, (LARGEST_ID,), largest)

    def tokens(self, tower: str, words: int) -> int:
        """Tokens of a picture, the CLS among them, or of a text."""
        return self.patches + 1 if tower == "vision" else words

    @property
    def eos_is_largest_id(self) -> bool:
        """Whether a text's EOS is its largest id: by OpenAI's rule, or as the last of all ids."""
        return self.eos_id in (LARGEST_ID, self.vocab_size - 1)

    def function(self) -> dict[str, Any]:
        """The fields that the fingerprint covers: one value for one function."""
        fields = dataclasses.asdict(self)
        if self.eos_is_largest_id:  # two ways to write the same rule
            fields["eos_id"] = "largest"
        return fields

    def check_ids(self, ids: np.ndarray) -> None:
        """Raises `UserError` unless all host ids "n l" are known and every text has an EOS."""
        super().check_ids(ids)
        if self.eos_id != LARGEST_ID:
            bad = np.flatnonzero(~(ids == self.eos_id).any(1))
            if bad.size:
                raise UserError(f"text {bad[0]} has no EOS (id {self.eos_id})")

    def used_lengths(self, ids: np.ndarray) -> np.ndarray:
        """Those up to the EOS, as the mask is causal."""
        if self.eos_id == LARGEST_ID:
            return ids.argmax(1) + 1
        return (ids == self.eos_id).argmax(1) + 1

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
        return cls(**cls.sizes(vision, text), embed=embed, eos_id=text["eos_token_id"])

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers' `CLIPModel` reads."""
        width = {"projection_dim": self.embed}
        return {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            **width,
            **self.to_sections(
                vision={**width, "model_type": "clip_vision_model"},
                text={**width, "model_type": "clip_text_model", "eos_token_id": self.eos_id},
            ),
        }


# What transformers assumes for a field that a config.json leaves out.
_HF_VISION = {
    **HF_TOWER,
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


class VisionTower(ViT):
    """Pictures to joint embeddings: (ln_post(tokens) @ projection)[CLS].

    The place `joins` is for `joining.Joins`: frames of a clip that layers read together.
    """

    joins: Any

    def __init__(self, config: CLIPConfig, remat: str, *, rng: Rng):
        width = config.vision.width
        std = width**-0.5
        super().__init__(config, remat, std=std, patch_bias=False, ln_pre=True, rng=rng)
        self.ln_post = LayerNorm(width, eps=config.vision.eps)
        self.projection = Linear(width, config.embed, use_bias=False, std=std, rng=rng)
        self.joins = nnx.data(None)

    @property
    def joins_frames(self) -> bool:
        return self.joins is not None

    def joined(
        self, x: Float[Array, "b s d"], frame_mask: Bool[Array, "c f"] | None, *, entered: bool
    ) -> Float[Array, "b 1 d"]:
        if self.merge:
            raise UserError(f"merge={self.merge}: the method merges tokens itself; set it to 0")
        sizes = {"layers": self.config.vision.layers, "remat": self.remat}
        return joining.run(self.blocks, x, frame_mask, self.joins, entered=entered, **sizes)

    def read_by_head(self, x: Float[Array, "b s d"]) -> Float[Array, "b 1 d"]:
        return x[:, :1]

    def head(self, x: Float[Array, "b s d"], key: Array | None) -> Float[Array, "b c"]:
        return self.projection(self.ln_post(x[:, 0]))


class TextTower(TextTransformer):
    """Token ids to joint embeddings: (ln_final(tokens) @ projection)[EOS].

    The mask is causal only: padding stands behind the EOS, so nothing that counts sees it.
    """

    CAUSAL = True
    FIRST_WORD = 1  # behind SOS

    def __init__(self, config: CLIPConfig, remat: str, *, rng: Rng):
        super().__init__(config, remat, projection_bias=False, rng=rng)

    def state_of_text(
        self, x: Float[Array, "b m d"], ids: Int[Array, "b l"], rows: int
    ) -> Float[Array, "b d"]:
        # Row by row: an index into rows and words at once would sum over all devices of a batch.
        return jnp.take_along_axis(x, self._end(ids, rows)[:, None, None], axis=1)[:, 0]

    def word_mask(self, ids: Int[Array, "b l"], rows: int) -> Bool[Array, "b m"]:
        return jnp.arange(ids.shape[1] + rows)[None] <= self._end(ids, rows)[:, None]

    def _end(self, ids: Int[Array, "b l"], rows: int) -> Int[Array, " b"]:
        eos = eos_position(ids, self.config.eos_id)
        return eos + rows if rows else eos


def eos_position(ids: Int[Array, "b l"], eos_id: int) -> Int[Array, " b"]:
    """The position of each text's end: the largest id (legacy configs), else the first `eos_id`.

    A text without an EOS is refused where ids are made (`CLIPConfig.check_ids`), not inside a
    compiled program.
    """
    if eos_id == LARGEST_ID:
        return ids.argmax(-1)
    return (ids == eos_id).argmax(-1)


class CLIP(TwoTowers):
    """Both towers and the temperature."""

    VISION, TEXT = VisionTower, TextTower
    INITIAL_SCALE = -math.log(0.07)  # CLIP, section 2.5
