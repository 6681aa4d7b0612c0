"""Reads the CLIP that an `open_clip_config.json` describes, if it is a plain ViT."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from uniadapter_jax.backbones.clip import LARGEST_ID, CLIPConfig
from uniadapter_jax.backbones.huggingface_config import TowerConfig
from uniadapter_jax.backbones.pixels import CLIP_PIXELS, PixelStatistics
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError

# Fields of a tower that are sizes, with open_clip's defaults.
_VISION = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16}
_VISION |= {"image_size": 224}
_TEXT = {"layers": 12, "width": 512, "heads": 8, "mlp_ratio": 4.0, "context_length": 77}
_TEXT |= {"vocab_size": 49408}
# Fields that change nothing here: for training, or about parts that must be absent anyway.
_IDLE = frozenset(
    "patch_dropout output_tokens pad_id eos_id final_ln_after_pool attn_pooler_queries "
    "attn_pooler_heads tokenizer_kwargs tokenizer_mode hf_tokenizer_name hf_model_pretrained "
    "hf_proj_type hf_pooler_type timm_model_pretrained timm_pool timm_proj timm_proj_bias "
    "timm_drop timm_drop_path".split()
)
# Fields that would make another model, with the values at which they do not.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "pool_type": ("tok", "argmax"),
    "pos_embed_type": ("learnable",),
    "proj_type": ("linear",),
    "block_type": (None, "default"),
}
_MOST = 2**31  # bound of a size; the config checks it more closely
_PLAIN_ELSE: tuple[Any, ...] = (None, False, {})
_TOP = ("embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "custom_text", "init_logit_scale")


def clip_config(content: Mapping[str, Any], path: pathlib.Path) -> CLIPConfig:
    """The CLIP of an `open_clip_config.json`.

    Raises:
      UserError: it is another kind of model, or normalises pictures in another way; the message
        names every such field.
    """
    model = content.get("model_cfg", content)
    problems: list[str] = []
    if not isinstance(model, Mapping):
        raise FileError(path, f"model_cfg should be a JSON object, is {model!r:.80}")
    embed, quick = model.get("embed_dim"), model.get("quick_gelu") or False
    vision, eps_v = _tower(model, _VISION, "vision_cfg", problems)
    text, eps_t = _tower(model, _TEXT, "text_cfg", problems)
    if type(embed) is not int:
        problems.append(f"embed_dim={embed!r:.80}")
    if type(quick) is not bool:
        problems.append(f"quick_gelu={quick!r:.80}")
    problems += [
        f"{name}={value!r:.80}"
        for name, value in model.items()
        if name not in _TOP and value not in _PLAIN_ELSE
    ]
    if problems:
        raise FileError(path, "describes no plain ViT CLIP: " + ", ".join(problems))
    check_pixels(content.get("preprocess_cfg") or {}, ("mean", "std"), path, CLIP_PIXELS)
    activation = "quick_gelu" if quick else "gelu"
    try:
        return _config(vision, eps_v, text, eps_t, embed, activation)
    except UserError as error:
        raise FileError(path, str(error)) from error


def _config(
    vision: Mapping[str, Any],
    eps_v: float,
    text: Mapping[str, Any],
    eps_t: float,
    embed: Any,
    activation: str,
) -> CLIPConfig:
    return CLIPConfig(
        vision=TowerConfig(
            vision["width"],
            int(vision["width"] * vision["mlp_ratio"]),
            vision["layers"],
            vision["width"] // vision["head_width"],
            activation,
            eps_v,
        ),
        text=TowerConfig(
            text["width"],
            int(text["width"] * text["mlp_ratio"]),
            text["layers"],
            text["heads"],
            activation,
            eps_t,
        ),
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        vocab_size=text["vocab_size"],
        positions=text["context_length"],
        embed=embed,
        eos_id=LARGEST_ID,
    )


def _tower(
    model: Mapping[str, Any], sizes: Mapping[str, Any], name: str, problems: list[str]
) -> tuple[dict[str, Any], float]:
    """(sizes, eps of LayerNorm); unsupported fields are added to `problems`."""
    eps = 1e-5
    values = dict(sizes)
    section = model.get(name)
    if not isinstance(section, Mapping):
        problems.append(f"{name}={section!r:.80}")
        return values, eps
    for field, value in section.items():
        if field in sizes:
            if isinstance(value, list) and value and value == value[:1] * len(value):
                value = value[0]  # image_size [224, 224]
            allowed = (int, float) if field == "mlp_ratio" else (int,)
            if type(value) not in allowed or not 0 < value < _MOST:
                problems.append(f"{name}.{field}={value!r:.80}")
            else:
                values[field] = value
        elif (
            field == "norm_kwargs"
            and isinstance(value, dict)
            and set(value) == {"eps"}
            and isinstance(value["eps"], float)
        ):
            eps = value["eps"]
        elif field not in _IDLE and value not in _PLAIN.get(field, _PLAIN_ELSE):
            problems.append(f"{name}.{field}={value!r:.80}")
    return values, eps


def check_pixels(
    content: Any, names: tuple[str, str], path: pathlib.Path, statistics: PixelStatistics
) -> None:
    """Raises `UserError` if a file gives other means and deviations of pixels than these."""
    if not isinstance(content, Mapping):
        raise FileError(path, f"pixels are described by {content!r:.80}, expected a JSON object")
    for name, ours in zip(names, statistics, strict=True):
        theirs = content.get(name)
        if theirs is not None and not _are_close(theirs, ours):
            raise FileError(
                path, f"{name} of pixels is {theirs!r:.80}, but the model's {ours} is built in"
            )


def _are_close(theirs: Any, ours: Sequence[float]) -> bool:
    return (
        isinstance(theirs, list)
        and len(theirs) == 3
        and all(isinstance(value, int | float) for value in theirs)
        and all(abs(a - b) <= 1e-4 for a, b in zip(theirs, ours, strict=True))
    )
