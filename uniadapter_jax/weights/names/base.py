"""HuggingFace's names for CLIP's tensors: one table for reading and for writing.

A row is (our path, their name, transform). `{i}` stands for the layer: we stack the layers, they
have a tensor for each. `{q,k,v}` in our path stands for several tensors that are one of theirs,
joined along its first axis.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from uniadapter_jax.weights.names.rules import Rule


@dataclasses.dataclass(frozen=True)
class Transform:
    """Turns a foreign tensor into ours (`read`) and back (`write`)."""

    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


def _conv_to_matrix(kernel: np.ndarray) -> np.ndarray:
    """[out, 3, p, p] to [p * p * 3, out]: the patch embedding as a product."""
    return kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])


def _matrix_to_conv(matrix: np.ndarray) -> np.ndarray:
    patch = round((matrix.shape[0] / 3) ** 0.5)
    return matrix.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)


def parts(ours: str) -> list[str]:
    """Our paths in a row: `a.{q,k}.b` is a.q.b and a.k.b."""
    match = re.fullmatch(r"(.*)\{(.*)\}(.*)", ours)
    return [match[1] + name + match[3] for name in match[2].split(",")] if match else [ours]


TRANSFORMS = {
    "same": Transform(lambda x: x, lambda x: x),
    "transpose": Transform(np.transpose, np.transpose),
    "patches": Transform(_conv_to_matrix, _matrix_to_conv),
    "row": Transform(lambda x: x[0, 0], lambda x: x[None, None]),
    "rows": Transform(lambda x: x[0], lambda x: x[None]),
}


Row = tuple[str, str, str]


def write_rows(
    table: Iterable[Row], ours_to_value: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """(their name, float32 array) of all tensors of a table; many are transposed views."""
    for ours, theirs, how in table:
        values = [
            np.asarray(jax.device_get(ours_to_value[name]), np.float32) for name in parts(ours)
        ]
        if "{i}" not in theirs:
            yield theirs, _joined(values, how)
            continue
        for i, layer in enumerate(zip(*values, strict=True)):
            yield theirs.format(i=i), _joined(layer, how)


def _joined(values: Sequence[np.ndarray], how: str) -> np.ndarray:
    pieces = [TRANSFORMS[how].write(value) for value in values]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def norm_rows(ours: str, theirs: str) -> list[Row]:
    """A LayerNorm's rows."""
    return [
        (f"{ours}.scale", f"{theirs}.weight", "same"),
        (f"{ours}.bias", f"{theirs}.bias", "same"),
    ]


def linear_rows(ours: str, theirs: str) -> list[Row]:
    """A linear layer's rows."""
    return [
        (f"{ours}.kernel", f"{theirs}.weight", "transpose"),
        (f"{ours}.bias", f"{theirs}.bias", "same"),
    ]


def block_rows(ours: str, theirs: str) -> list[Row]:
    """The rows of the layers of a tower."""
    layer = f"{theirs}.encoder.layers.{{i}}"
    return [
        *norm_rows(f"{ours}.blocks.ln_1", f"{layer}.layer_norm1"),
        *linear_rows(f"{ours}.blocks.attn.q", f"{layer}.self_attn.q_proj"),
        *linear_rows(f"{ours}.blocks.attn.k", f"{layer}.self_attn.k_proj"),
        *linear_rows(f"{ours}.blocks.attn.v", f"{layer}.self_attn.v_proj"),
        *linear_rows(f"{ours}.blocks.attn.out", f"{layer}.self_attn.out_proj"),
        *norm_rows(f"{ours}.blocks.ln_2", f"{layer}.layer_norm2"),
        *linear_rows(f"{ours}.blocks.mlp.fc1", f"{layer}.mlp.fc1"),
        *linear_rows(f"{ours}.blocks.mlp.fc2", f"{layer}.mlp.fc2"),
    ]


_VISION, _TEXT = "vision_model", "text_model"
HUGGINGFACE_CLIP: tuple[Row, ...] = (
    ("logit_scale", "logit_scale", "same"),
    ("text.token_embedding", f"{_TEXT}.embeddings.token_embedding.weight", "same"),
    ("text.position_embedding", f"{_TEXT}.embeddings.position_embedding.weight", "same"),
    *block_rows("text", _TEXT),
    *norm_rows("text.ln_final", f"{_TEXT}.final_layer_norm"),
    ("text.projection.kernel", "text_projection.weight", "transpose"),
    ("vision.class_embedding", f"{_VISION}.embeddings.class_embedding", "same"),
    ("vision.patch_embedding.kernel", f"{_VISION}.embeddings.patch_embedding.weight", "patches"),
    ("vision.position_embedding", f"{_VISION}.embeddings.position_embedding.weight", "same"),
    *norm_rows("vision.ln_pre", f"{_VISION}.pre_layrnorm"),  # spelt so by transformers
    *block_rows("vision", _VISION),
    *norm_rows("vision.ln_post", f"{_VISION}.post_layernorm"),
    ("vision.projection.kernel", "visual_projection.weight", "transpose"),
)

# Buffers of older transformers releases that hold no weights.
IGNORED = (
    f"{_TEXT}.embeddings.position_ids",
    f"{_VISION}.embeddings.position_ids",
)

# The table for files that have these names already.
HUGGINGFACE_RULES = tuple(
    Rule(name, (name,), "positions" if name.startswith(f"{_VISION}.embeddings.pos") else "same")
    for _, name, _ in HUGGINGFACE_CLIP
)
