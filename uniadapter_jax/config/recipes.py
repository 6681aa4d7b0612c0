"""The papers' recipes, which config files share; their files say what differs between sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from uniadapter_jax.config import base_config, parse_argument

# The method of a family's paper, and where its converted weights are expected.
CLIP, BLIP = "clip", "blip"
METHODS = {CLIP: "cross_modal_adapter", BLIP: "uniadapter"}
WEIGHTS = {CLIP: "openai/clip-vit-base-patch32", BLIP: "weights/blip-base-224"}


class Choice(NamedTuple):
    """What the argument of --config chooses: family, method and backbone."""

    family: str
    method: str
    backbone: str


def choose(argument: str | None, family: str, weights: Mapping[str, str] = WEIGHTS) -> Choice:
    """Reads `method=...,backbone=...`; a backbone is a path, or `clip` or `blip` for the usual one.

    Without a backbone the method of a paper brings its own family, and any other takes `family`.
    """
    given = parse_argument(argument, method="", backbone="")
    of_method = {method: name for name, method in METHODS.items()}
    chosen = given["backbone"] if given["backbone"] in weights else ""
    chosen = chosen or of_method.get(given["method"], family)
    backbone = given["backbone"] if given["backbone"] not in ("", *weights) else weights[chosen]
    return Choice(chosen, given["method"] or METHODS[chosen], backbone)


def cross_modal_adapter(
    choice: Choice, name: str, *, bottleneck: int, shared_dim: int
) -> ConfigDict:
    """A CLIP by the released recipe of Cross-Modal Adapter, which has these sizes for each set.

    Defaults: 12 frames at 1 fps, 32 words, every caption a sample, batch 128, lr 1e-5, 5 epochs.
    """
    config = base_config(choice.method)
    config.name = f"{name}-{choice.method}"
    config.backbone = choice.backbone
    config.data.records = f"data/{name}"
    if choice.method == METHODS[CLIP]:
        config.method.bottleneck, config.method.shared_dim = bottleneck, shared_dim
    return config


def uniadapter(choice: Choice, name: str, *, bottleneck: int, rerank_k: int) -> ConfigDict:
    """A BLIP by the released recipe of UniAdapter: re-ranked, AdamW with cosine per epoch."""
    config = base_config(choice.method, "matching")
    config.name = f"{name}-{choice.method}"
    config.backbone = choice.backbone
    if choice.method == METHODS[BLIP]:
        config.method.bottleneck = bottleneck
    config.compute.remat = "full"
    config.task.rerank_k = rerank_k
    config.data.records = f"data/{name}"
    config.data.resize = "squash"
    config.data.preprocess = "blip"
    config.optimizer.recipe = "adamw_cosine_per_epoch"
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup = 0.0
    config.optimizer.clip_norm = 0.0
    return config


def pictures(argument: str | None, name: str, *, rerank_k: int, short_side: int) -> ConfigDict:
    """A Karpathy split with either paper's method: a BLIP of 384 pixels, or a CLIP."""
    choice = choose(argument, BLIP, {**WEIGHTS, BLIP: "weights/blip-base-384"})
    if choice.family == BLIP:
        return uniadapter_pictures(choice, name, rerank_k=rerank_k, short_side=short_side)
    config = cross_modal_adapter(choice, f"{name}-clip", bottleneck=8, shared_dim=16)
    config.data.frames = 1
    config.data.prepare.source = "karpathy"
    config.data.val_split = "val"
    return config


def uniadapter_pictures(choice: Choice, name: str, *, rerank_k: int, short_side: int) -> ConfigDict:
    """UniAdapter's released recipe for pictures of 384 pixels; `short_side` is what is stored."""
    config = uniadapter(choice, name, bottleneck=512, rerank_k=rerank_k)
    config.data.frames = 1
    config.data.words = 35
    config.data.augment = "blip"
    config.data.max_words = 30
    config.data.prepare.source = "karpathy"
    config.data.prepare.short_side = short_side
    config.optimizer.lr = 1e-5
    config.train.batch_size = 256
    config.train.epochs = 6
    config.eval.batch_size = 64
    return config


def uniadapter_clips(choice: Choice, name: str, *, frames: int = 8, words: int = 40) -> ConfigDict:
    """UniAdapter on videos, of which nothing was released: our choice, after Aurora.

    224 pixels, not cropped; frames drawn anew in training, of 32 that are stored; batch 64, lr
    1e-4, 5 epochs; frame-aware attention; the best 128 candidates re-ranked; r = 128.
    """
    config = uniadapter(choice, name, bottleneck=128, rerank_k=128)
    config.data.records = f"data/{name}-32"
    config.task.frame_weights = True
    config.data.frames = frames
    config.data.sampling = "random"
    config.data.words = words
    config.data.max_words = words
    config.data.prepare.sampling = "middle"
    config.data.prepare.frames = 32
    config.data.prepare.short_side = 240  # as most clips are
    config.optimizer.lr = 1e-4
    config.train.batch_size = 64
    config.train.epochs = 5
    return config
