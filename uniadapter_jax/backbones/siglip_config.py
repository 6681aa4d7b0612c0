"""What a SigLIP's `config.json` says."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from uniadapter_jax.backbones.huggingface_config import (
    TowerConfig,
    check_known,
    check_size,
    section,
)
from uniadapter_jax.backbones.pixels import PixelStatistics
from uniadapter_jax.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class SigLIPConfig:
    """The function a SigLIP computes, apart from its weights.

    Attributes:
      positions: tokens of every text; shorter texts are padded, since the last position is read.
      pad_id: what fills texts.
    """

    pixels: ClassVar[PixelStatistics] = PixelStatistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    has_logit_bias: ClassVar[bool] = True
    pooling_reads: ClassVar[tuple[str, ...]] = ("attn.k", "attn.v")
    vision: TowerConfig
    text: TowerConfig
    image_size: int
    patch_size: int
    vocab_size: int
    positions: int
    embed: int
    pad_id: int

    def __post_init__(self) -> None:
        check_size("image_size", self.image_size)
        check_size("patch_size", self.patch_size)
        check_size("vocab_size", self.vocab_size)
        check_size("max_position_embeddings", self.positions)
        if self.patch_size > self.image_size:
            raise UserError(f"patch_size={self.patch_size} exceeds image_size={self.image_size}")
        if self.embed != self.vision.width:
            raise UserError(
                f"text_config.projection_size={self.embed}: expected the vision tower's "
                f"hidden_size={self.vision.width}, since features of both are compared"
            )
        if not isinstance(self.pad_id, int) or not 0 <= self.pad_id < self.vocab_size:
            raise UserError(
                f"text_config.pad_token_id={self.pad_id!r:.80}: expected an id below "
                f"vocab_size={self.vocab_size}"
            )

    @property
    def patches(self) -> int:
        """Whole patches of one picture; what is left at its right and lower end is not seen."""
        return (self.image_size // self.patch_size) ** 2

    def tokens(self, tower: str, words: int) -> int:
        """Of a picture, or of a text, however short its row is."""
        del words
        return self.patches if tower == "vision" else self.positions

    def function(self) -> dict[str, Any]:
        """What of the config the fingerprint covers."""
        return {"family": "siglip", **dataclasses.asdict(self)}

    def check_ids(self, ids: np.ndarray) -> None:
        """Raises `UserError` unless all host ids "n l" are known."""
        check_known(ids, self.vocab_size)

    @classmethod
    def from_huggingface(cls, config: dict[str, Any]) -> SigLIPConfig:
        """Reads the `config.json` of a transformers `SiglipModel`.

        Fields that the file leaves out have the value that transformers gives them.

        Raises:
          UserError: a field has no value that a SigLIP could have.
        """
        vision = section(config, "vision_config", _HF_VISION)
        text = section(config, "text_config", _HF_TEXT)
        if vision.get("vision_use_head") is False:
            raise UserError("vision_config.vision_use_head=false: without a head it has no feature")
        projection = text.get("projection_size")
        return cls(
            vision=TowerConfig.from_section(vision),
            text=TowerConfig.from_section(text),
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            vocab_size=text["vocab_size"],
            positions=text["max_position_embeddings"],
            embed=text["hidden_size"] if projection is None else projection,
            pad_id=text["pad_token_id"],
        )

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers' `SiglipModel` reads."""
        text = {
            **self.text.to_section(),
            "model_type": "siglip_text_model",
            "projection_size": self.embed,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.positions,
            "pad_token_id": self.pad_id,
        }
        vision = {
            **self.vision.to_section(),
            "model_type": "siglip_vision_model",
            "image_size": self.image_size,
            "patch_size": self.patch_size,
        }
        return {
            "architectures": ["SiglipModel"],
            "model_type": "siglip",
            "text_config": text,
            "vision_config": vision,
        }


# What transformers assumes for a field that a config.json leaves out.
_HF_TOWER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_HF_VISION = {**_HF_TOWER, "num_channels": 3, "image_size": 224, "patch_size": 16}
_HF_TEXT = {
    **_HF_TOWER,
    "vocab_size": 32000,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
