"""BLIP's own files: pre-trained, fine-tuned for retrieval, or for questions.

The text encoder, the decoder and the heads have the names that transformers took over. There is no
config; it follows from shapes by BLIP's rules: its epsilons, heads that are 64 wide, and [DEC] and
[ENC] as the last two ids. A pre-trained file has the matching heads and the decoder, so the
backbone has both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np

from uniadapter_jax.backbones.blip_config import BLIPConfig
from uniadapter_jax.backbones.huggingface_config import TowerConfig
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.weights.names import blip as blip_names
from uniadapter_jax.weights.names.openai import count_layers, usual_heads
from uniadapter_jax.weights.names.rules import Rule

_VISION = (
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.position_embedding", "pos_embed"),
    ("embeddings.patch_embedding", "patch_embed.proj"),
    ("encoder.layers.{i}.layer_norm1", "blocks.{i}.norm1"),
    ("encoder.layers.{i}.self_attn.qkv", "blocks.{i}.attn.qkv"),
    ("encoder.layers.{i}.self_attn.projection", "blocks.{i}.attn.proj"),
    ("encoder.layers.{i}.layer_norm2", "blocks.{i}.norm2"),
    ("encoder.layers.{i}.mlp", "blocks.{i}.mlp"),
    ("post_layernorm", "norm"),
)
# Momentum copies, and the queue of features that they fill.
_MOMENTUM = re.compile(
    r"(visual_encoder|text_encoder|text_decoder|vision_proj|text_proj|adapters)_m\..*"
    r"|(image|text|idx)_queue|ptr_queue|queue_ptr"
)
_SEP, _PAD = 102, 0  # BERT's
_EPS, _TEXT_EPS = 1e-6, 1e-12


def rules(config: BLIPConfig) -> tuple[Rule, ...]:
    """From BLIP's own names to HuggingFace's."""
    return tuple(
        Rule(_own_name(rule.source), rule.targets, rule.transform)
        for rule in blip_names.rules(config)
    )


def _own_name(name: str) -> str:
    for theirs, blip in _VISION:
        if (rest := name.removeprefix(f"vision_model.{theirs}")) != name:
            return f"visual_encoder.{blip}{rest}"
    return name


def of_model(tensors: Mapping[str, np.ndarray], config: BLIPConfig) -> dict[str, np.ndarray]:
    """The tensors without momentum copies and without a decoder that `config` leaves out."""
    return {
        name: value
        for name, value in tensors.items()
        if not _MOMENTUM.fullmatch(name)
        and (config.decoder or not name.startswith("text_decoder."))
    }


_DECODER_KEY = "text_decoder.bert.encoder.layer.0.crossattention.self.key.weight"
_RANKS = {
    "visual_encoder.patch_embed.proj.weight": 4,
    "visual_encoder.pos_embed": 3,
    "visual_encoder.blocks.0.mlp.fc1.weight": 2,
    "text_encoder.embeddings.word_embeddings.weight": 2,
    "text_encoder.embeddings.position_embeddings.weight": 2,
    "text_encoder.encoder.layer.0.intermediate.dense.weight": 2,
}


def config_of_shapes(
    tensors: Mapping[str, np.ndarray],
    *,
    activation: str = "gelu",
    heads: tuple[int, int] | None = None,
) -> BLIPConfig:
    """The config that the shapes imply; heads (vision, text) are the width over 64 if not given.

    A decoder of captions attends to pictures. Where these are wider than texts (ViT-L), it cannot
    serve as the decoder of answers, which attends to questions, so it is left out.

    Raises:
      UserError: tensors that tell the sizes are missing; all of them in one report.
    """
    matching = "vision_proj.weight" in tensors
    ranks = {**_RANKS, "vision_proj.weight": 2} if matching else _RANKS
    problems = [
        f"missing: {name}" if name not in tensors else f"shape of {name}: {tensors[name].shape}"
        for name, rank in ranks.items()
        if name not in tensors or tensors[name].ndim != rank
    ]
    if problems:
        raise UserError("no BLIP with its own names:\n  " + "\n  ".join(problems))
    patches, places, hidden_v, words, positions, hidden_t = (tensors[n].shape for n in _RANKS)
    width_v, _, patch, _ = patches
    vocab, width_t = words
    heads_v, heads_t = heads or (usual_heads("vision", width_v), usual_heads("text", width_t))
    layers_v = count_layers(tensors, "visual_encoder.blocks")
    layers_t = count_layers(tensors, "text_encoder.encoder.layer")
    decoder = tensors.get(_DECODER_KEY)
    return BLIPConfig(
        vision=TowerConfig(width_v, hidden_v[0], layers_v, heads_v, activation, _EPS),
        text=TowerConfig(width_t, hidden_t[0], layers_t, heads_t, activation, _TEXT_EPS),
        image_size=patch * math.isqrt(max(0, places[1] - 1)),
        patch_size=patch,
        vocab_size=vocab,
        positions=positions[0],
        embed=tensors["vision_proj.weight"].shape[0] if matching else 256,
        dec_id=vocab - 2,
        enc_id=vocab - 1,
        sep_id=min(_SEP, vocab - 1),
        pad_id=_PAD,
        matching=matching,
        decoder=decoder is not None and decoder.shape[-1] == width_t,
    )
