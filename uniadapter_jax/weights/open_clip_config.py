"""`open_clip_config.json`: which CLIP it describes, if it is one that we have."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from uniadapter_jax.backbones.clip import LARGEST_ID, CLIPConfig, TowerConfig
from uniadapter_jax.backbones.pixels import PIXEL_MEAN, PIXEL_STD
from uniadapter_jax.errors import UserError

# Fields of a tower that are sizes, with open_clip's defaults.
_VISION = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16}
_VISION |= {"image_size": 224}
_TEXT = {"layers": 12, "width": 512, "heads": 8, "mlp_ratio": 4.0, "context_length": 77}
_TEXT |= {"vocab_size": 49408}
# Fields that change nothing here: training only, or about parts that must be absent anyway.
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
_PLAIN_ELSE: tuple[Any, ...] = (None, False, {})
_TOP = ("embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "custom_text", "init_logit_scale")


def clip_config(content: Mapping[str, Any], path: pathlib.Path) -> CLIPConfig:
    """The CLIP of an `open_clip_config.json`.

    Raises:
      UserError: it is another kind of model, or its pictures are normalised otherwise; every
        field that says so is named.
    """
    model = content.get("model_cfg", content)
    problems: list[str] = []
    try:
        vision, eps_v = _tower(model["vision_cfg"], _VISION, "vision_cfg", problems)
        text, eps_t = _tower(model["text_cfg"], _TEXT, "text_cfg", problems)
        embed = model["embed_dim"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: no model_cfg of a CLIP ({error!r})") from error
    problems += [
        f"{name}={value!r}"
        for name, value in model.items()
        if name not in _TOP and value not in _PLAIN_ELSE
    ]
    if problems:
        raise UserError(f"{path} describes no plain ViT CLIP: " + ", ".join(problems))
    check_pixels(content.get("preprocess_cfg", {}), ("mean", "std"), path)
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
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
    section: Mapping[str, Any], sizes: Mapping[str, Any], name: str, problems: list[str]
) -> tuple[dict[str, Any], float]:
    """(sizes, eps of LayerNorm); fields that we have no place for are added to `problems`."""
    eps = 1e-5
    found = dict(sizes)
    for field, value in section.items():
        if field in sizes:
            if isinstance(value, list) and len(set(value)) == 1:  # image_size [224, 224]
                value = value[0]
            allowed = (int, float) if field == "mlp_ratio" else (int,)
            if type(value) not in allowed or value <= 0:
                problems.append(f"{name}.{field}={value!r}")
            else:
                found[field] = value
        elif field == "norm_kwargs" and isinstance(value, dict) and set(value) == {"eps"}:
            eps = float(value["eps"])
        elif field not in _IDLE and value not in _PLAIN.get(field, _PLAIN_ELSE):
            problems.append(f"{name}.{field}={value!r}")
    return found, eps


def check_pixels(content: Mapping[str, Any], names: tuple[str, str], path: pathlib.Path) -> None:
    """Raises `UserError` if a file asks for other means and deviations of pixels than CLIP's."""
    for name, ours in zip(names, (PIXEL_MEAN, PIXEL_STD), strict=True):
        theirs = content.get(name)
        if theirs is not None and (
            len(theirs) != 3 or max(abs(a - b) for a, b in zip(theirs, ours, strict=True)) > 1e-4
        ):
            raise UserError(f"{path}: {name} of pixels is {theirs}, but CLIP's {ours} is built in")
