"""The library's doors with right arguments, and ways to make each argument wrong."""

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tiny
from ml_collections import ConfigDict

from uniadapter_jax import testing
from uniadapter_jax.adapters.partition import partition
from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.backbones.blip_config import ANSWERING, MATCHING
from uniadapter_jax.data.tokenizers.clip import MissingTokenizer
from uniadapter_jax.data.tokenizers.wordpiece import WordPieceTokenizer
from uniadapter_jax.inference import gallery
from uniadapter_jax.inference.blip_model import AdaptedBLIP
from uniadapter_jax.inference.model import AdaptedModel

PAD, CLS, SEP, DEC, VOCAB, WORDS = 0, 2, 5, 58, 60, 6
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[MASK]", "what", "[SEP]", "yes", "no", "##s", "is", "grey"]
TOKENS += [f"w{i}" for i in range(VOCAB - 2 - len(TOKENS))]


def clip(task=None):
    part = tiny.split("lora", options={"dropout": 0.0})
    config, tokenizer = tiny.clip().config, MissingTokenizer("nowhere")
    more = {"method": "lora", "fingerprint": "", "task": task or {}, "batch_size": 4}
    return AdaptedModel(part, config, tokenizer, **more)


def blip(parts=(MATCHING, ANSWERING), task=None, **options):
    model, method = tiny.blip(parts=parts), get_method("uniadapter")
    options = {"bottleneck": 3, "key_value_bottleneck": 2, **options}
    method.attach(model, ConfigDict({**method.options, **options}), np.random.default_rng(0))
    part = partition(model, method.trainable)
    tokenizer = WordPieceTokenizer({token: i for i, token in enumerate(TOKENS)})
    more = {"method": "uniadapter", "fingerprint": "", "task": task or {}, "batch_size": 4}
    return AdaptedBLIP(part, model.config, tokenizer, **more)


def texts(rows, rng, begin=CLS):
    ids = rng.integers(6, 58, (rows, WORDS))
    ids[:, 0], ids[:, 4], ids[:, 5] = begin, SEP, PAD
    return ids


def pairs(rng, rows=3):
    return {
        "frames": rng.integers(0, 256, (rows, 2, 32, 32, 3)).astype(np.uint8),
        "frame_mask": np.array([[1, 1], [1, 0], [1, 1]], bool),
        "text": texts(rows, rng),
        "item": np.arange(rows) + 4,
        "negatives": {"clip": np.array([1, 2, 0]), "text": np.array([2, 0, 1])},
    }


def units(rows, rng, width=16):
    found = rng.standard_normal((rows, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def momentum(rng, rows=3, queue=16):
    sides = ("image", "text")
    return {
        "momentum": {side: units(rows, rng) for side in sides},
        "queue": {side: units(queue, rng) for side in sides} | {"item": np.arange(queue) - 1},
        "alpha": 0.3,
    }


def asked(rng, rows=3):
    answer = texts(2 * rows, rng, DEC).reshape(rows, 2, WORDS)
    weight = np.array([[1.0, 0.5], [1.0, 0.0], [0.2, 0.3]], np.float32)
    answer[1, 1] = PAD
    found = pairs(rng, rows)
    return {
        "frames": found["frames"],
        "frame_mask": found["frame_mask"],
        "question": found["text"],
        "answer": answer,
        "answer_weight": weight,
    }


@dataclasses.dataclass
class Door:
    """A call with right arguments. `kinds`: {path of an argument: what it is}."""

    call: Callable[..., Any]
    arguments: dict[str, Any]
    kinds: dict[str, str]


@functools.cache
def doors():
    """{name: door}; built once, since every one compiles."""
    rng = np.random.default_rng(0)
    one, two = clip(), blip()
    ids = np.asarray(tiny.batch()["text"])
    pixels = rng.integers(0, 256, (3, 40, 36, 3)).astype(np.uint8)
    floats = rng.standard_normal((3, 32, 32, 3)).astype(np.float32)
    films = rng.integers(0, 256, (3, 2, 40, 36, 3)).astype(np.uint8)
    mask = np.array([[1, 1], [1, 0], [1, 1]], bool)
    batch = {name: np.asarray(value) for name, value in tiny.batch().items()}
    of_pairs = {
        "batch": "mapping",
        "batch.frames": "frames",
        "batch.frame_mask": "frame_mask",
        "batch.item": "items",
        "task": "task",
    }
    of_clip, of_blip = {"batch.text": "clip_ids"}, {"batch.text": "blip_ids"}
    negatives = {
        "batch.negatives": "needed",
        "batch.negatives.clip": "negatives",
        "batch.negatives.text": "negatives",
    }
    of_momentum = {
        f"batch.{what}.{side}": "units"
        for what in ("momentum", "queue")
        for side in ("image", "text")
    }
    of_momentum |= {"batch.queue.item": "queue_items", "batch.alpha": "share"}
    of_questions = {
        "batch.frames": "frames",
        "batch.frame_mask": "frame_mask",
        "batch.question": "blip_ids",
    }
    of_answers = {"batch.answer": "answers", "batch.answer_weight": "weights", "task": "task"}
    named = testing.official_names("uniadapter", two.partition.trainable)
    frames = one.encode_frames(floats)
    return {
        "clip frames": Door(one.encode_frames, {"pixels": pixels}, {"pixels": "pictures"}),
        "clip floats": Door(one.encode_frames, {"pixels": floats}, {"pixels": "normalised"}),
        "clip text": Door(one.encode_text, {"texts": ids}, {"texts": "clip_ids"}),
        "clip similarity": Door(
            one.similarity,
            {"text": frames, "frames": np.stack([frames, frames], 1), "mask": mask},
            {"text": "features", "frames": "features", "mask": "mask"},
        ),
        "clips": Door(
            two.encode_clips,
            {"pixels": films, "mask": mask},
            {"pixels": "films", "mask": "frame_mask"},
        ),
        "blip ids": Door(two.encode_text, {"texts": texts(3, rng)}, {"texts": "blip_ids"}),
        "blip text": Door(two.encode_text, {"texts": ["what is", "w1"]}, {"texts": "strings"}),
        "blip similarity": Door(
            two.similarity,
            {"text": units(3, rng), "clips": units(2, rng)},
            {"text": "units", "clips": "units"},
        ),
        "match": Door(
            two.match,
            {"pixels": films, "texts": ["what is", "w1"], "mask": mask},
            {"pixels": "films", "texts": "strings", "mask": "frame_mask"},
        ),
        "answer": Door(
            two.answer,
            {
                "pixels": films,
                "questions": ["what is", "w1", "is w2"],
                "answers": ["yes", "no w3"],
                "mask": mask,
                "top": 2,
            },
            {
                "pixels": "films",
                "questions": "questions",
                "answers": "candidates",
                "mask": "frame_mask",
                "top": "count",
            },
        ),
        "write": Door(
            two.answer,
            {"pixels": films, "questions": ["what is", "w1", "is w2"], "mask": mask, "top": 2},
            {"pixels": "films", "questions": "questions", "mask": "frame_mask", "top": "count"},
        ),
        "retrieval": Door(
            functools.partial(testing.loss_and_grads, one),
            {"batch": batch, "task": "retrieval", "seed": 0},
            {**of_pairs, **of_clip, "seed": "seed"},
        ),
        "itc": Door(
            functools.partial(testing.loss_and_grads, two),
            {"batch": pairs(rng) | momentum(rng), "task": "itc"},
            of_pairs | of_blip | of_momentum,
        ),
        "itm": Door(
            functools.partial(testing.loss_and_grads, two),
            {"batch": pairs(rng), "task": "itm", "deterministic": True},
            {**of_pairs, **of_blip, **negatives, "deterministic": "flag"},
        ),
        "vqa": Door(
            functools.partial(testing.loss_and_grads, two),
            {"batch": asked(rng), "task": {"name": "vqa"}},
            of_questions | of_answers,
        ),
        "rank": Door(
            functools.partial(testing.rank_scores, two),
            {
                "batch": {k: v for k, v in asked(rng).items() if not k.startswith("answer")},
                "candidates": texts(4, rng, DEC),
                "task": {"rank_k": 3},
            },
            of_questions | {"candidates": "answers", "task": "task"},
        ),
        "steps": Door(
            functools.partial(testing.recipe_steps, one),
            {"batches": [batch] * 2, "recipe": {"lr": 0.01}, "n": 2, "seed": 0},
            {
                **{"batches": "needed", "recipe": "recipe", "n": "steps", "seed": "seed"},
                **{"batches.0.frames": "frames", "batches.1.text": "clip_ids"},
            },
        ),
        "average": Door(
            functools.partial(testing.momentum_update, two),
            {"averaged": named, "factor": 0.5},
            {"averaged": "mapping", "averaged.itm_head.bias": "tensor", "factor": "share"},
        ),
        "reference": Door(
            testing.reference_batch,
            {
                "pixels": rng.standard_normal((3, 2, 3, 32, 32)),
                "mask": mask,
                "text": texts(3, rng),
            },
            {"pixels": "channels", "mask": "mask", "text": "whole"},
        ),
        "official": Door(
            testing.official_names,
            {"method": "uniadapter", "tree": two.partition.trainable},
            {"method": "method", "tree": "mapping"},
        ),
        "counts": Door(testing.trained_counts, {"model": two}, {"model": "needed"}),
        "strip": Door(gallery.film_strip, {"frames": [b"no JPEG"]}, {}),
    }


# -- what is wrong ----------------------------------------------------------------------------

NO_ARRAYS = (
    *("text", b"bytes", {}, {"a": 1}, {1, 2}, object(), len, True, 1.5, np.nan, 1j, 10**30),
    *([["a"]], [[1], [1, 2]], [None], [object()], np.array(["a"]), np.array([None])),
    *(np.array("2020", "datetime64[D]"), np.zeros((2, 2), complex)),
)
NO_NUMBERS = ("1", b"1", None, [], [1], {}, object(), np.ones(2), np.nan, np.inf, 1j, True)
NO_TEXTS = (
    *(b"bytes", 3, 1.5, True, {}, {"a": "b"}, {"a"}, object(), len, [b"a", "b"], ["a", None]),
    *(["a", 3], [["a"], ["b"]], np.array([["a"]]), ["\ud800", "b"], [["a", "b"]], np.array([None])),
)


def spoilt(value, rng, number):
    """The array with `number` at a random place."""
    spoilt = np.array(value, float if not np.issubdtype(np.asarray(value).dtype, int) else None)
    spoilt[tuple(rng.integers(0, n) for n in spoilt.shape)] = number
    return spoilt


def shapes(value):
    """Other layouts of an array."""
    value = np.asarray(value)
    found = [
        value[None],
        value[..., None],
        value[0],
        value.ravel() if value.ndim > 1 else value[:-1],
    ]
    found += [np.moveaxis(value, -1, 1)] if value.ndim > 3 else []
    return found


def wrong(kind, value, rng):
    """A list of values that no argument of that kind may have, where `value` is right."""
    if kind in ("pictures", "films", "normalised", "frames"):
        floats = np.asarray(value, np.float32)
        found = [*shapes(value), value[..., :1], value[..., :0, :], np.asarray(value, int)]
        found += [floats if floats.max() > 20 else 255 * floats, np.moveaxis(value, -1, -3)]
        square = rng.standard_normal((*value.shape[:-3], 32, 32, 3))
        found += [spoilt(square, rng, bad) for bad in (np.nan, np.inf, -np.inf, 1e39)]
        found += [square[..., 1:, :], square.astype(complex), list(map(str, square)), value > 3]
        return [*NO_ARRAYS, None, *found]
    if kind == "channels":
        return [
            *NO_ARRAYS,
            None,
            *shapes(value),
            np.moveaxis(value, 2, -1),
            spoilt(value, rng, np.nan),
        ]
    if kind in ("clip_ids", "blip_ids", "answers", "whole"):
        top = {"clip_ids": 100, "whole": 2**31}.get(kind, VOCAB)
        found = [spoilt(value, rng, bad) for bad in (-1, top, 2**40, -(2**63))]
        found += [spoilt(np.asarray(value, float), rng, bad) for bad in (1.5, np.nan, np.inf)]
        found += [*(shapes(value)[:3]), value > 3, list(value) + [[1, 2]], value[..., :0]]
        found += [np.tile(value, 20)] if kind != "whole" else []
        if kind in ("blip_ids", "answers"):
            hole, left, nothing = (np.array(value) for _ in range(3))
            hole[0, ..., 2], left[0, ..., 0], nothing[0] = PAD, PAD, PAD
            found += [hole, left, *([nothing] if kind == "blip_ids" else [])]
            begin = np.array(value)
            begin[0, ..., 0] = 7 if kind == "blip_ids" else CLS
            found += [begin] if kind == "answers" else []
        if kind == "clip_ids":
            found += [np.where(value == tiny.EOS, 5, value)]
        texts = {"blip_ids": (0, 16), "clip_ids": ()}.get(kind, ())
        return [*(x for i, x in enumerate(NO_ARRAYS) if i not in texts), None, *found]
    if kind in ("mask", "frame_mask"):
        found = [value[:, None], value.T, value[:1], value * 2, value * 0.5, value[:, :1]]
        found += [spoilt(value, rng, np.nan), spoilt(value, rng, -1)]
        found += [np.zeros_like(value)] if kind == "frame_mask" else []
        return [*NO_ARRAYS, *found]
    if kind == "items":
        return [*NO_ARRAYS, value[:, None], value[:-1], value - 9, value + 0.5, value + 2.0**31]
    if kind == "queue_items":
        return [*NO_ARRAYS, None, value[:, None], value[:-1], value - 9, value + 0.5]
    if kind == "negatives":
        return [
            *NO_ARRAYS,
            None,
            np.arange(3),
            value[:2],
            value - 1,
            value + 1,
            value / 2,
            value[:, None],
        ]
    if kind in ("features", "units", "tensor", "weights"):
        found = [spoilt(value, rng, bad) for bad in (np.nan, np.inf, 1e39)]
        found += [*shapes(value)[:3], np.asarray(value, complex), value[..., :-1]]
        found += [3 * value, value.T] if kind == "units" else []
        found += [-1 - value] if kind == "weights" else []
        keep = kind == "features" and value.ndim == 3
        found = [x for x in found if not (keep and np.ndim(x) == 2)]
        return [*NO_ARRAYS, None, *found]
    if kind == "strings":
        return [*NO_TEXTS, None, np.zeros((2, 2)), [[1.5, 2]]]
    if kind == "questions":
        return [*NO_TEXTS, None, "what", ["a"], ["", "a", "b"], [" ", "a", "b"], [*value, "a"]]
    if kind == "candidates":
        return [*NO_TEXTS, "yes", [""], [" ", "yes"], ["w1 " * 30]]
    if kind == "count":
        return [*NO_NUMBERS, 0, -1, 1.5, 2.0, *([] if rng.random() < 0.5 else ["2"])]
    if kind == "seed":
        return [*NO_NUMBERS, -1, 1.5]
    if kind == "steps":
        return [*NO_NUMBERS, -1, 1.5, 3]
    if kind == "share":
        return [*(x for x in NO_NUMBERS if x is not None), -0.1, 1.1, 10**400]
    if kind == "flag":
        return ["True", 1, 0, None, [], np.ones(2)]
    if kind == "method":
        return ["unadapter", None, 3, [], b"uniadapter", {}]
    if kind == "task":
        found = ["", "retrievel", None, 3, [], b"vqa", {"name": 3}, {"name": None}, {"nam": "vqa"}]
        found += [{"name": "vqa", "rank_smoothing": "x"}, {"name": "vqa", "frame_weights": 1}]
        found += [{"name": "vqa", "rank_k": 0}, {"name": "vqa", "beams": 2.5}, {3: 4}]
        found += [{"name": "vqa", "smoothing": 1.0}, {"name": "vqa", "smoothing": np.nan}]
        found += [{"similarity": "max"}, {"temperature": 0}, {"temperature": "5"}, {"queue": -1}]
        return found
    if kind == "recipe":
        found = [None, 3, "lr", {"lrr": 1}, {"lr": "x"}, {"lr": np.nan}, {"lr": -1}, {"warmup": 7}]
        found += [
            {"total_steps": 0},
            {"total_steps": 1.5},
            {"recipe": "adam"},
            {"recipe": 3},
            {3: 4},
        ]
        return [
            *found,
            {"lr_multipliers": 3},
            {"clip_norm": -1},
            {"weight_decay": True},
            {"total_steps": 1},
        ]
    if kind == "mapping":
        return [None, 3, "text", [], [1], object(), {"a": 1}, {3: 4}]
    assert kind == "needed", kind
    return [None, 3, "text", object(), {"a": 1}, [None], [3, 4]]


def alike(value):
    """The same argument in other dress, if it is an array."""
    if not isinstance(value, np.ndarray):
        return []
    found = [np.asfortranarray(value), np.repeat(value, 2, axis=0)[::2]]
    if value.dtype != np.uint8:
        found.append(value.tolist())
    if value.dtype == bool:
        return [*found, value.astype(int), value.astype(float)]
    return [*found, value.astype(value.dtype.newbyteorder(">"))]


def changed(arguments, path, value):
    """The arguments with another value at a path such as `batch.queue.item`."""
    if isinstance(arguments, list):
        number, rest = path.split(".", 1)
        new = list(arguments)
        new[int(number)] = changed(new[int(number)], rest, value)
        return new
    if path in arguments:
        return {**arguments, path: value}
    name, rest = path.split(".", 1)
    return {**arguments, name: changed(arguments[name], rest, value)}


def at(arguments, path):
    """The value at such a path."""
    if isinstance(arguments, list):
        name, rest = path.split(".", 1)
        return at(arguments[int(name)], rest)
    if path in arguments:
        return copy.copy(arguments[path])
    name, rest = path.split(".", 1)
    return at(arguments[name], rest)


def cases():
    """(door, argument, wrong value) of all that is above."""
    rng = np.random.default_rng(1)
    for name, door in doors().items():
        for path, kind in door.kinds.items():
            for i, value in enumerate(wrong(kind, at(door.arguments, path), rng)):
                yield f"{name}: {path} {kind} {i}", door.call, changed(door.arguments, path, value)
