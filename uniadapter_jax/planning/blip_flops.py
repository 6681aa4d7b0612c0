"""Useful FLOPs of BLIP's tasks: what products cost by the formula, as `flops` has it for CLIP.

A product of [a, b] by [b, c] counts 2abc. Nothing else counts: norms, the losses with their
similarities, what is computed twice, or on several devices where one would do. So the keys and
values of a picture count once in each layer, however many texts look at it. Padding and places that
stay empty count as what they are padded to.

    passes = matching_passes(config, pairs=64, frames=8, words=40, momentum=True, ...)
    step_flops(config, part, passes)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from uniadapter_jax.adapters.partition import Partition, flat_names
from uniadapter_jax.backbones.blip_config import BLIPConfig
from uniadapter_jax.backbones.huggingface_config import TowerConfig
from uniadapter_jax.common.types import PyTree

_TOWERS = ("vision", "text", "decoder")


class Pass(NamedTuple):
    """One use of a part of the model.

    part: a tower (vision, text, decoder), or a head (vision_proj, text_proj, itm_head).
    items: pictures, texts, answers, or the rows of a head.
    tokens: that each of them has.
    media: tokens, of all media together, of which cross-attention makes keys and values.
    seen: tokens of its medium that an item attends to; 0: no cross-attention.
    room: tokens of its own that each attends to, if not `tokens`.
    learns: whether a gradient comes back through it.
    """

    part: str
    items: int
    tokens: int = 1
    media: int = 0
    seen: int = 0
    room: int = 0
    learns: bool = True


def forward_flops(config: BLIPConfig, part: Partition, passes: Sequence[Pass]) -> int:
    """FLOPs of the products of these passes, forward."""
    return sum(_forward(config, part, one) for one in passes)


def step_flops(config: BLIPConfig, part: Partition, passes: Sequence[Pass]) -> int:
    """FLOPs of one training step: forward, the gradient of activations, that of trained kernels.

    The gradient of a kernel's product with respect to activations costs what the forward pass does;
    that of attention's products twice that, since both their factors are activations. It counts
    for all of a pass that learns, where anything trains in it or before it, but for the pixels,
    which need none.
    """
    total = forward_flops(config, part, passes)
    homes = {name.partition(".")[0] for name in flat_names(part.trainable)}
    for one in passes:
        if not one.learns:
            continue
        total += _kernels(config, part.trainable, one)
        if homes & _before(one):
            total += _forward(config, part, one) + _attention(config, one) - _pixels(config, one)
    return total


def matching_passes(
    config: BLIPConfig,
    *,
    pairs: int,
    frames: int,
    words: int,
    momentum: bool,
    frame_weights: bool,
) -> list[Pass]:
    """Of a training step of the task `matching`: towers, momentum's, and three texts for a clip."""
    seen = frames * _picture(config)
    passes = [*clip_passes(config, pairs, frames), *text_passes(pairs, words)]
    if momentum:
        passes += [one._replace(learns=False) for one in passes]
    if frame_weights:
        passes.append(Pass("vision_proj", pairs * frames, learns=False))
    return passes + scoring_passes(3 * pairs, words, media=pairs * seen, seen=seen)


def answering_passes(
    config: BLIPConfig,
    *,
    clips: int,
    frames: int,
    words: int,
    answers: int,
    answer_words: int,
    frame_weights: bool,
) -> list[Pass]:
    """Of a training step of the task `vqa`: one question a clip, and all its places for answers."""
    questions = question_passes(
        config, clips=clips, together=1, frames=frames, words=words, frame_weights=frame_weights
    )
    decoded = Pass("decoder", clips * answers, answer_words - 1, clips * words, words)
    return [states_pass(config, clips, frames), *questions, decoded]


def states_pass(config: BLIPConfig, clips: int, frames: int) -> Pass:
    """Of the vision tower."""
    return Pass("vision", clips * frames, _picture(config))


def clip_passes(config: BLIPConfig, clips: int, frames: int) -> list[Pass]:
    """Clips to features."""
    return [states_pass(config, clips, frames), Pass("vision_proj", clips)]


def text_passes(texts: int, words: int) -> list[Pass]:
    """Texts alone to features."""
    return [Pass("text", texts, words), Pass("text_proj", texts)]


def scoring_passes(texts: int, words: int, *, media: int, seen: int) -> list[Pass]:
    """Texts in fusion with clips to matching logits; `media` and `seen` as in `Pass`."""
    return [Pass("text", texts, words, media, seen), Pass("itm_head", texts)]


def question_passes(
    config: BLIPConfig,
    *,
    clips: int,
    together: int,
    frames: int,
    words: int,
    frame_weights: bool,
) -> list[Pass]:
    """So many questions together about each clip, in fusion with it."""
    count, seen = clips * together, frames * _picture(config)
    passes = [Pass("text", count, words, clips * seen, seen)]
    if frame_weights:  # which nothing is learnt from
        alone = [*text_passes(count, words), Pass("vision_proj", clips * frames)]
        passes += [one._replace(learns=False) for one in alone]
    return passes


def ranking_passes(*, questions: int, words: int, ranked: int, answer_words: int) -> list[Pass]:
    """The first word of all answers, and so many answers to each question in whole."""
    return [
        Pass("decoder", 0, media=questions * words),  # keys and values, once for all answers
        Pass("decoder", questions, seen=words),
        Pass("decoder", questions * ranked, answer_words - 1, seen=words),
    ]


def search_passes(*, questions: int, words: int, beams: int, answer_words: int) -> list[Pass]:
    """Beam search, of which one round counts: how many there are depends on the answers."""
    return [
        Pass("decoder", 0, media=questions * words),
        Pass("decoder", questions * beams, seen=words, room=answer_words),
    ]


def _picture(config: BLIPConfig) -> int:
    """Tokens of a picture, CLS included."""
    return config.patches + 1


def _forward(config: BLIPConfig, part: Partition, one: Pass) -> int:
    trees = part.trainable, part.frozen
    return sum(_kernels(config, tree, one) for tree in trees) + _attention(config, one)


def _kernels(config: BLIPConfig, parameters: PyTree, one: Pass) -> int:
    """Forward FLOPs of these parameters' products in a pass.

    A kernel "... i o" costs 2 i o for every row that it multiplies; so does the decoder's
    vocabulary "v d", with which a word's last product is.
    """
    total = 0
    for name, leaf in flat_names(parameters).items():
        home, *path = name.split(".")
        if not path or not (path[-1].endswith("kernel") or name == "decoder.token_embedding"):
            continue
        if home == "adapters":  # one slot for each layer, or for several
            if one.part in _TOWERS:
                layers = _tower(config, one).layers
                size = layers * (leaf.size // leaf.shape[0])
                total += 2 * size * _adapter_rows(path, one)
        elif home.removesuffix("_head") == one.part or home == one.part:
            total += 2 * leaf.size * _rows(path, one)
    return total


def _rows(path: list[str], one: Pass) -> int:
    """Rows that the kernel at this path of the part multiplies."""
    if "patch_embedding" in path:
        return one.items * (one.tokens - 1)
    if {"cross_key", "cross_value"} & set(path):
        return one.media
    if "cross" in path:
        if {"k", "v"} & set(path):
            return one.media
        return one.items * one.tokens if one.seen else 0
    return one.items * one.tokens


def _adapter_rows(path: list[str], one: Pass) -> int:
    """Rows that a kernel of UniAdapter's shared module multiplies: it acts twice in fusion."""
    rows = one.items * one.tokens
    if path == ["rows", "kernel"] and one.part == "vision":
        return rows
    if one.part == "vision":
        return 0
    fused = one.seen > 0
    if path == ["text_kernel"]:
        return rows
    if path == ["cross_kernel"]:
        return rows if fused else 0
    return 2 * rows if fused else rows


def _attention(config: BLIPConfig, one: Pass) -> int:
    """Queries by keys, and weights by values: 4 d for each pair of tokens and layer."""
    if one.part not in _TOWERS:
        return 0
    tower = _tower(config, one)
    reach = (one.room or one.tokens) + one.seen
    return 4 * one.items * one.tokens * reach * tower.width * tower.layers


def _pixels(config: BLIPConfig, one: Pass) -> int:
    """Of the patches."""
    if one.part != "vision":
        return 0
    patch = 3 * config.patch_size**2 * config.vision.width
    return 2 * one.items * config.patches * patch


def _tower(config: BLIPConfig, one: Pass) -> TowerConfig:
    return config.vision if one.part == "vision" else config.text


def _before(one: Pass) -> set[str]:
    """Homes of parameters whose gradients come through this pass."""
    if one.part in ("vision", "vision_proj"):
        return {"vision", "adapters"}
    if one.part == "decoder":
        return {"vision", "text", "decoder", "adapters"}
    fused = one.seen or one.part == "itm_head"
    return {"text", "adapters", *(("vision",) if fused else ())}
