"""OpenAI's names for CLIP's tensors, which open_clip and Cross-Modal Adapter use as well.

The files carry no config; it follows from the shapes, by OpenAI's own rules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

from uniadapter_jax.backbones.clip import LARGEST_ID, CLIPConfig
from uniadapter_jax.backbones.huggingface_config import TowerConfig
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.weights.names.rules import Rule


def _same(ours: str, theirs: str, *kinds: str) -> list[Rule]:
    return [Rule(f"{theirs}.{kind}", (f"{ours}.{kind}",)) for kind in kinds]


def _blocks(ours: str, theirs: str) -> list[Rule]:
    layer, block = f"{ours}.encoder.layers.{{i}}", f"{theirs}.resblocks.{{i}}"
    qkv = [f"{layer}.self_attn.{letter}_proj" for letter in "qkv"]
    return [
        *_same(f"{layer}.layer_norm1", f"{block}.ln_1", "weight", "bias"),
        Rule(f"{block}.attn.in_proj_weight", tuple(f"{p}.weight" for p in qkv), "split_qkv"),
        Rule(f"{block}.attn.in_proj_bias", tuple(f"{p}.bias" for p in qkv), "split_qkv"),
        *_same(f"{layer}.self_attn.out_proj", f"{block}.attn.out_proj", "weight", "bias"),
        *_same(f"{layer}.layer_norm2", f"{block}.ln_2", "weight", "bias"),
        *_same(f"{layer}.mlp.fc1", f"{block}.mlp.c_fc", "weight", "bias"),
        *_same(f"{layer}.mlp.fc2", f"{block}.mlp.c_proj", "weight", "bias"),
    ]


_VISION, _TEXT = "vision_model", "text_model"
RULES: tuple[Rule, ...] = (
    Rule("logit_scale", ("logit_scale",)),
    Rule("token_embedding.weight", (f"{_TEXT}.embeddings.token_embedding.weight",)),
    Rule("positional_embedding", (f"{_TEXT}.embeddings.position_embedding.weight",)),
    *_blocks(_TEXT, "transformer"),
    *_same(f"{_TEXT}.final_layer_norm", "ln_final", "weight", "bias"),
    Rule("text_projection", ("text_projection.weight",), "transpose"),
    Rule("visual.class_embedding", (f"{_VISION}.embeddings.class_embedding",)),
    Rule("visual.conv1.weight", (f"{_VISION}.embeddings.patch_embedding.weight",)),
    Rule(
        "visual.positional_embedding",
        (f"{_VISION}.embeddings.position_embedding.weight",),
        "positions",
    ),
    *_same(f"{_VISION}.pre_layrnorm", "visual.ln_pre", "weight", "bias"),
    *_blocks(_VISION, "visual.transformer"),
    *_same(f"{_VISION}.post_layernorm", "visual.ln_post", "weight", "bias"),
    Rule("visual.proj", ("visual_projection.weight",), "transpose"),
)

# Sizes that OpenAI's archives hold as tensors, and causal masks.
IGNORED = (
    "input_resolution",
    "context_length",
    "vocab_size",
    "attn_mask",
    "transformer.resblocks.{i}.attn_mask",
)

_RANKS = {
    "visual.conv1.weight": 4,
    "visual.positional_embedding": 2,
    "visual.transformer.resblocks.0.mlp.c_fc.weight": 2,
    "transformer.resblocks.0.mlp.c_fc.weight": 2,
    "token_embedding.weight": 2,
    "positional_embedding": 2,
    "text_projection": 2,
}


_WIDEST_OF_64 = 1024  # in wider vision towers (open_clip's H, g, bigG) heads are 80, 88, 104 wide


def config_of_shapes(
    tensors: Mapping[str, np.ndarray],
    *,
    activation: str = "quick_gelu",
    heads: tuple[int, int] | None = None,
) -> CLIPConfig:
    """The config that the shapes imply; heads (vision, text) are the width over 64 if not given.

    Raises:
      UserError: tensors that tell the sizes are missing; all of them in one report.
    """
    problems = [
        f"missing: {name}" if name not in tensors else f"shape of {name}: {tensors[name].shape}"
        for name, rank in _RANKS.items()
        if name not in tensors or tensors[name].ndim != rank
    ]
    if problems:
        raise UserError("no ViT CLIP with OpenAI's names:\n  " + "\n  ".join(problems))
    shapes = {name: tensors[name].shape for name in _RANKS}
    width_v, _, patch, _ = shapes["visual.conv1.weight"]
    vocab, width_t = shapes["token_embedding.weight"]
    heads_v, heads_t = heads or (usual_heads("vision", width_v), usual_heads("text", width_t))

    def tower(prefix: str, width: int, heads: int) -> TowerConfig:
        hidden = shapes[f"{prefix}.resblocks.0.mlp.c_fc.weight"][0]
        return TowerConfig(
            width, hidden, count_layers(tensors, f"{prefix}.resblocks"), heads, activation
        )

    return CLIPConfig(
        vision=tower("visual.transformer", width_v, heads_v),
        text=tower("transformer", width_t, heads_t),
        image_size=patch * math.isqrt(max(0, shapes["visual.positional_embedding"][0] - 1)),
        patch_size=patch,
        vocab_size=vocab,
        positions=shapes["positional_embedding"][0],
        embed=shapes["text_projection"][1],
        eos_id=LARGEST_ID,
    )


def count_layers(tensors: Iterable[str], prefix: str) -> int:
    """The number of layers whose tensors have names that begin with `prefix`."""
    pattern = re.compile(re.escape(prefix) + r"\.(0|[1-9]\d{0,5})\..*")
    return len({m[1] for name in tensors if (m := pattern.fullmatch(name))})


def usual_heads(tower: str, width: int) -> int:
    """Heads of a tower without a config: they are 64 wide.

    Raises:
      UserError: the width is no multiple of 64, or heads of that width may have another size.
    """
    if width % 64 or (tower == "vision" and width > _WIDEST_OF_64):
        why = "is no multiple of 64" if width % 64 else "open_clip's models divide in several ways"
        raise UserError(
            f"the {tower} tower is {width} wide, which {why}, so the number of its heads cannot be "
            "told; pass --heads VISION,TEXT"
        )
    return width // 64
