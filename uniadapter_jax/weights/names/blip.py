"""HuggingFace's names for BLIP's tensors.

`table` has rows like those of `names.base`; which rows depends on the heads that a BLIP has. Files
of transformers have no temperature; it is then BLIP's initial one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from uniadapter_jax.backbones.blip_config import TEMPERATURE, BLIPConfig
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.weights.names.base import Row, linear_rows, norm_rows
from uniadapter_jax.weights.names.rules import Rule

_POSITIONS = "vision_model.embeddings.position_embedding"


def _vision() -> list[Row]:
    ours, theirs = "vision", "vision_model"
    block, layer = f"{ours}.blocks", f"{theirs}.encoder.layers.{{i}}"
    return [
        (f"{ours}.class_embedding", f"{theirs}.embeddings.class_embedding", "row"),
        (f"{ours}.position_embedding", _POSITIONS, "rows"),
        (
            f"{ours}.patch_embedding.kernel",
            f"{theirs}.embeddings.patch_embedding.weight",
            "patches",
        ),
        (f"{ours}.patch_embedding.bias", f"{theirs}.embeddings.patch_embedding.bias", "same"),
        *norm_rows(f"{block}.ln_1", f"{layer}.layer_norm1"),
        *linear_rows(f"{block}.attn.{{q,k,v}}", f"{layer}.self_attn.qkv"),
        *linear_rows(f"{block}.attn.out", f"{layer}.self_attn.projection"),
        *norm_rows(f"{block}.ln_2", f"{layer}.layer_norm2"),
        *linear_rows(f"{block}.mlp.fc1", f"{layer}.mlp.fc1"),
        *linear_rows(f"{block}.mlp.fc2", f"{layer}.mlp.fc2"),
        *norm_rows(f"{ours}.ln_post", f"{theirs}.post_layernorm"),
    ]


def _bert(ours: str, theirs: str) -> list[Row]:
    block, layer, embeddings = f"{ours}.blocks", f"{theirs}.encoder.layer.{{i}}", "embeddings"
    rows = [
        (f"{ours}.token_embedding", f"{theirs}.{embeddings}.word_embeddings.weight", "same"),
        (f"{ours}.position_embedding", f"{theirs}.{embeddings}.position_embeddings.weight", "same"),
        *norm_rows(f"{ours}.ln_embed", f"{theirs}.{embeddings}.LayerNorm"),
    ]
    for place, name in (("attn", "attention"), ("cross", "crossattention")):
        for short, long in (("q", "query"), ("k", "key"), ("v", "value")):
            rows += linear_rows(f"{block}.{place}.{short}", f"{layer}.{name}.self.{long}")
        rows += linear_rows(f"{block}.{place}.out", f"{layer}.{name}.output.dense")
        rows += norm_rows(f"{block}.{place}.ln", f"{layer}.{name}.output.LayerNorm")
    return [
        *rows,
        *linear_rows(f"{block}.fc1", f"{layer}.intermediate.dense"),
        *linear_rows(f"{block}.fc2", f"{layer}.output.dense"),
        *norm_rows(f"{block}.ln_out", f"{layer}.output.LayerNorm"),
    ]


_MATCHING: tuple[Row, ...] = (
    *linear_rows("vision_proj", "vision_proj"),
    *linear_rows("text_proj", "text_proj"),
    *linear_rows("itm_head", "itm_head"),
    ("temp", "temp", "same"),
)
_HEAD = "text_decoder.cls.predictions"
_DECODER: tuple[Row, ...] = (
    *_bert("decoder", "text_decoder.bert"),
    *linear_rows("decoder_head.dense", f"{_HEAD}.transform.dense"),
    *norm_rows("decoder_head.ln_head", f"{_HEAD}.transform.LayerNorm"),
    ("decoder_head.bias", f"{_HEAD}.bias", "same"),
)

# Buffers of older transformers releases that hold no weights.
IGNORED = (
    "text_encoder.embeddings.position_ids",
    "text_decoder.bert.embeddings.position_ids",
)
# Second names of tied tensors.
_TIED = {
    f"{_HEAD}.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    f"{_HEAD}.decoder.bias": f"{_HEAD}.bias",
}


def table(config: BLIPConfig) -> tuple[Row, ...]:
    """(our path, HuggingFace's name, transform) of every tensor of a BLIP with this config."""
    return (
        *_vision(),
        *_bert("text", "text_encoder"),
        *(_MATCHING if config.matching else ()),
        *(_DECODER if config.decoder else ()),
    )


def rules(config: BLIPConfig) -> tuple[Rule, ...]:
    """The table for files that have HuggingFace's names already."""
    return tuple(
        Rule(name, (name,), "batched_positions" if name == _POSITIONS else "same")
        for _, name, _ in table(config)
    )


def canonical(tensors: Mapping[str, np.ndarray], config: BLIPConfig) -> dict[str, np.ndarray]:
    """The tensors with tied ones under one name, and with a temperature.

    Raises:
      UserError: a tied tensor is there under both names with values that differ.
    """
    kept = dict(tensors)
    for second, first in _TIED.items():
        if second in kept:
            value = kept.pop(second)
            if not np.array_equal(kept.setdefault(first, value), value):
                raise UserError(f"{second} is not {first}, but BLIP's decoder ties them")
    if config.matching:
        kept.setdefault("temp", np.array(TEMPERATURE, np.float32))
    return kept
