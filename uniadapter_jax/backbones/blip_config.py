"""The config of a BLIP, from and to its `config.json`."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from uniadapter_jax.backbones.huggingface_config import (
    HF_TOWER,
    VisionLanguageConfig,
    check_pictures,
    checked,
    section,
)
from uniadapter_jax.backbones.pixels import CLIP_PIXELS, PixelStatistics
from uniadapter_jax.common.errors import UserError

TEMPERATURE = 0.07  # BLIP's initial one; transformers' files leave it out
MATCHING, ANSWERING = "BlipForImageTextRetrieval", "BlipForQuestionAnswering"


@dataclasses.dataclass(frozen=True)
class BLIPConfig(VisionLanguageConfig):
    """The function a BLIP computes, apart from its weights.

    Attributes:
      dec_id, enc_id: what starts an answer, and what stands first in a text that is fused.
      sep_id, pad_id: what ends a text, and what fills it.
      matching: whether there are projections, the matching head and the temperature.
      decoder: whether there is a decoder of answers.
      text_std: of the text transformer's and the decoder's random weights.
    """

    pixels: ClassVar[PixelStatistics] = CLIP_PIXELS
    dec_id: int
    enc_id: int
    sep_id: int
    pad_id: int
    matching: bool = True
    decoder: bool = False
    text_std: float = 0.02

    def __post_init__(self) -> None:
        check_pictures(self.image_size, self.patch_size)
        self.check_sizes("image_text_hidden_size")
        for name, theirs in _HF_IDS.items():
            self.check_id(theirs, getattr(self, name))

    def function(self) -> dict[str, Any]:
        """The fields that the fingerprint covers."""
        fields = {"family": "blip", **dataclasses.asdict(self)}
        del fields["text_std"]  # of weights that a fingerprint knows
        if not self.matching:  # nothing has that width
            del fields["embed"]
        return fields

    def used_lengths(self, ids: np.ndarray) -> np.ndarray:
        """Those up to the last that is no padding, which is masked; at least 1."""
        words = ids != self.pad_id
        last = ids.shape[1] - words[:, ::-1].argmax(1)
        return np.where(words.any(1), last, 1)

    @classmethod
    def from_huggingface(cls, config: dict[str, Any]) -> BLIPConfig:
        """Reads the `config.json` of a transformers BLIP.

        Fields that the file leaves out have the value that transformers gives them. It knows no
        [ENC]: `text_config.enc_token_id` is ours, and without it BLIP's rule holds, the id after
        [DEC] (`bos_token_id`).

        Raises:
          UserError: a field has no value that a BLIP could have, or `architectures` names a BLIP
            without the text encoder, such as the one for captions.
        """
        vision = section(config, "vision_config", _HF_VISION)
        text = section(config, "text_config", _HF_TEXT)
        parts = config.get("architectures") or [MATCHING]
        if not isinstance(parts, list) or not all(part in (MATCHING, ANSWERING) for part in parts):
            raise UserError(f"architectures={parts!r:.80}: expected {MATCHING} or {ANSWERING}")
        dec_id = text["bos_token_id"]
        return cls(
            **cls.sizes(vision, text),
            embed=checked("image_text_hidden_size", config.get("image_text_hidden_size", 256), int),
            dec_id=dec_id,
            enc_id=text.get("enc_token_id", dec_id + 1),
            sep_id=text["sep_token_id"],
            pad_id=text.get("pad_token_id", 0),
            matching=MATCHING in parts,
            decoder=ANSWERING in parts,
            text_std=text["initializer_range"],
        )

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers' BLIP models read."""
        text = {
            "model_type": "blip_text_model",
            "encoder_hidden_size": self.vision.width,
            "initializer_range": self.text_std,
            **{theirs: getattr(self, ours) for ours, theirs in _HF_IDS.items()},
        }
        parts = {MATCHING: self.matching, ANSWERING: self.decoder}
        return {
            "architectures": [name for name, there in parts.items() if there],
            "model_type": "blip",
            "image_text_hidden_size": self.embed,
            **self.to_sections(vision={"model_type": "blip_vision_model"}, text=text),
        }


_HF_IDS = {
    "dec_id": "bos_token_id",
    "enc_id": "enc_token_id",
    "sep_id": "sep_token_id",
    "pad_id": "pad_token_id",
}
# What transformers assumes for a field that a config.json leaves out.
_HF_VISION = {
    **HF_TOWER,
    "image_size": 384,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
_HF_TEXT = {
    **HF_TOWER,
    "num_attention_heads": 8,
    "vocab_size": 30524,
    "max_position_embeddings": 512,
    "bos_token_id": 30522,
    "sep_token_id": 102,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
}
