"""The config of a SigLIP, from and to its `config.json`."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from uniadapter_jax.backbones.huggingface_config import HF_TOWER, VisionLanguageConfig, section
from uniadapter_jax.backbones.pixels import PixelStatistics
from uniadapter_jax.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class SigLIPConfig(VisionLanguageConfig):
    """The function a SigLIP computes, apart from its weights.

    Every text has all `positions`: shorter ones are padded, since the last position is read. What
    of a picture is left at its right and lower end, beyond whole patches, is not seen.

    Attributes:
      pad_id: what fills texts.
    """

    pixels: ClassVar[PixelStatistics] = PixelStatistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    has_logit_bias: ClassVar[bool] = True
    pooling_reads: ClassVar[tuple[str, ...]] = ("attn.k", "attn.v")
    pad_id: int

    def __post_init__(self) -> None:
        self.check_sizes("text_config.projection_size")
        if self.patch_size > self.image_size:
            raise UserError(f"patch_size={self.patch_size} exceeds image_size={self.image_size}")
        if self.embed != self.vision.width:
            raise UserError(
                f"text_config.projection_size={self.embed}: expected the vision tower's "
                f"hidden_size={self.vision.width}, since features of both are compared"
            )
        self.check_id("pad_token_id", self.pad_id)

    def tokens(self, tower: str, words: int) -> int:
        """Tokens of a picture, or of a text, however short its row is."""
        del words
        return self.patches if tower == "vision" else self.positions

    def function(self) -> dict[str, Any]:
        """The fields that the fingerprint covers."""
        return {"family": "siglip", **dataclasses.asdict(self)}

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
            **cls.sizes(vision, text),
            embed=text["hidden_size"] if projection is None else projection,
            pad_id=text["pad_token_id"],
        )

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers' `SiglipModel` reads."""
        text = {
            "model_type": "siglip_text_model",
            "projection_size": self.embed,
            "pad_token_id": self.pad_id,
        }
        return {
            "architectures": ["SiglipModel"],
            "model_type": "siglip",
            **self.to_sections(vision={"model_type": "siglip_vision_model"}, text=text),
        }


# What transformers assumes for a field that a config.json leaves out.
_HF_TOWER = {
    **HF_TOWER,
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
