"""HuggingFace's names for SigLIP's tensors, as transformers' `SiglipModel` writes them.

The head's attention is torch's, where q, k and v are one tensor, joined along its first axis.
"""

from __future__ import annotations

from uniadapter_jax.weights.names.base import Row, block_rows, linear_rows, norm_rows
from uniadapter_jax.weights.names.rules import Rule

_VISION, _TEXT = "vision_model", "text_model"
_HEAD = f"{_VISION}.head"
TABLE: tuple[Row, ...] = (
    ("logit_scale", "logit_scale", "rows"),
    ("logit_bias", "logit_bias", "rows"),
    ("text.token_embedding", f"{_TEXT}.embeddings.token_embedding.weight", "same"),
    ("text.position_embedding", f"{_TEXT}.embeddings.position_embedding.weight", "same"),
    *block_rows("text", _TEXT),
    *norm_rows("text.ln_final", f"{_TEXT}.final_layer_norm"),
    *linear_rows("text.projection", f"{_TEXT}.head"),
    ("vision.patch_embedding.kernel", f"{_VISION}.embeddings.patch_embedding.weight", "patches"),
    ("vision.patch_embedding.bias", f"{_VISION}.embeddings.patch_embedding.bias", "same"),
    ("vision.position_embedding", f"{_VISION}.embeddings.position_embedding.weight", "same"),
    *block_rows("vision", _VISION),
    *norm_rows("vision.ln_post", f"{_VISION}.post_layernorm"),
    ("vision.attn.probe", f"{_HEAD}.probe", "row"),
    ("vision.attn.{q,k,v}.kernel", f"{_HEAD}.attention.in_proj_weight", "transpose"),
    ("vision.attn.{q,k,v}.bias", f"{_HEAD}.attention.in_proj_bias", "same"),
    *linear_rows("vision.attn.out", f"{_HEAD}.attention.out_proj"),
    *norm_rows("vision.ln_pool", f"{_HEAD}.layernorm"),
    *linear_rows("vision.fc1", f"{_HEAD}.mlp.fc1"),
    *linear_rows("vision.projection", f"{_HEAD}.mlp.fc2"),
)

# Buffers of older transformers releases that hold no weights.
IGNORED = (f"{_TEXT}.embeddings.position_ids", f"{_VISION}.embeddings.position_ids")

# The table for files that have these names already.
RULES = tuple(
    Rule(theirs, (theirs,), "patch_positions" if ours == "vision.position_embedding" else "same")
    for ours, theirs, _ in TABLE
)
