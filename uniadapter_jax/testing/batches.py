"""Batches for `testing`: the fields that each task reads, checked and put on the device.

`testing` describes `retrieval`. Batches for BLIP have `frames` and `frame_mask` as there, and

    matching, itc, itm
        text            "b l"     ids, [CLS] first, then 0 where a text has ended
        item            "b"       default: all rows differ
        negatives       {"clip": "b", "text": "b"}: for each text the row of a clip that does not
                        match, for each clip the row of such a text; all count. `itc` needs none
        momentum        {"image": "b c", "text": "b c"}: unit vectors from the averaged weights
        queue           {"image": "q c", "text": "q c", "item": "q"}; needs momentum
        alpha           the weight of momentum's targets; default: 0
    vqa
        question        "b l"     like text
        answer          "b p a"   [DEC] first, [SEP] last, then 0
        answer_weight   "b p"     0 where there is no answer
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from uniadapter_jax.common.errors import UserError, unknown
from uniadapter_jax.common.types import Array, Int
from uniadapter_jax.inference import arguments
from uniadapter_jax.inference.blip_model import blip_ids
from uniadapter_jax.inference.model import clip_ids
from uniadapter_jax.tasks.matching.losses import NO_ITEM, Momentum, Queue
from uniadapter_jax.tasks.matching.task import Given, Negatives

_FRAMES = ("frames", "frame_mask")
_PAIRS = (*_FRAMES, "text", "item")
_GIVEN = ("negatives", "momentum", "queue", "alpha")
FIELDS: Mapping[str, tuple[str, ...]] = {
    "retrieval": _PAIRS,
    "matching": _PAIRS + _GIVEN,
    "vqa": (*_FRAMES, "question", "answer", "answer_weight"),
}


def device_batch(batch: Mapping[str, Any], kind: str, config: Any) -> dict[str, Any]:
    """The arrays that the task `kind` reads; for `matching` also `given` and `negatives`.

    `config` is the backbone's.

    Raises:
      UserError: a field is unknown or missing, or its shape or values are invalid.
    """
    if not isinstance(batch, Mapping):
        raise UserError(f"a batch is a mapping of fields, not {type(batch).__name__}")
    for name in batch:
        if name not in FIELDS[kind]:
            raise UserError(unknown("the batch", str(name), FIELDS[kind]))
    ids = "question" if kind == "vqa" else "text"
    for name in ("frames", ids, *(("answer", "answer_weight") if kind == "vqa" else ())):
        if name not in batch:
            raise UserError(f"the batch has no {name!r}; a batch of {kind} needs it")
    arrays: dict[str, Any] = dict(clip_fields(batch, config))
    text = (clip_ids if kind == "retrieval" else question_ids)(batch[ids], ids, config)
    rows = len(arrays["frames"])
    arguments.check_shape(text, ids, "b l", (rows, None))
    if not rows:
        raise UserError("the batch is empty, so it has no loss")
    arrays[ids] = jnp.asarray(text)
    if kind == "vqa":
        return arrays | _answers(batch, rows, config)
    item = batch.get("item")
    item = arguments.integers(np.arange(rows) if item is None else item, "item", "b", (rows,))
    arrays["item"] = jnp.asarray(item)
    if kind == "matching":
        arrays["given"] = _given(batch, rows, config)
        arrays["negatives"] = _negatives(batch, item)
    return arrays


def clip_fields(batch: Mapping[str, Any], config: Any) -> dict[str, Array]:
    """`frames` and `frame_mask`, checked."""
    side = config.image_size
    frames = arguments.pixels_of(batch["frames"], "frames", "b f H W 3", side)
    arguments.check_shape(frames, "frames", "b f H W 3", (None, None, side, side, 3))
    mask = arguments.frame_mask(batch.get("frame_mask"), "frame_mask", *frames.shape[:2])
    return {"frames": jnp.asarray(frames), "frame_mask": jnp.asarray(mask)}


def question_ids(value: Any, name: str, config: Any) -> Int[np.ndarray, "b l"]:
    """Ids of texts or questions for a BLIP."""
    return blip_ids(value, name, "b l", config)


def candidate_ids(value: Any, config: Any) -> Int[np.ndarray, "n a"]:
    """The checked ids of answers to rank; there may be none."""
    ids = _answer_ids(value, "candidates", "n a", config)
    arguments.check_begin(ids, np.ones(len(ids), bool), "candidates", config.dec_id, "[DEC]")
    return ids


def _answer_ids(value: Any, name: str, axes: str, config: Any) -> Int[np.ndarray, "... a"]:
    ids = arguments.text_ids(value, name, axes, config)
    if ids.shape[-1] < 2:
        raise UserError(f"{name}: rows of one id have no room for a word behind [DEC]")
    return ids


def _answers(batch: Mapping[str, Any], rows: int, config: Any) -> dict[str, Array]:
    answer = _answer_ids(batch["answer"], "answer", "b p a", config)
    arguments.check_shape(answer, "answer", "b p a", (rows, None, None))
    weight = arguments.floats(batch["answer_weight"], "answer_weight", "b p", answer.shape[:2])
    if not answer.shape[1]:
        raise UserError(f"answer has the shape {answer.shape}: no place for an answer")
    if (weight < 0).any():
        raise UserError(f"answer_weight has values down to {weight.min()}, expected at least 0")
    arguments.check_begin(answer, weight > 0, "answer", config.dec_id, "[DEC]")
    silent = (weight > 0) & (answer[..., 1] == config.pad_id)
    if (wrong := np.argwhere(silent)).size:
        raise UserError(f"answer: row {wrong[0].tolist()} has a weight, but no word behind [DEC]")
    return {"answer": jnp.asarray(answer), "answer_weight": jnp.asarray(weight)}


def _given(batch: Mapping[str, Any], rows: int, config: Any) -> Given | None:
    momentum, queue, alpha = (batch.get(name) for name in ("momentum", "queue", "alpha"))
    if momentum is None:
        if queue is not None:
            raise UserError("the batch has a queue, but no momentum features of its own pairs")
        if alpha is not None:
            raise UserError(
                "the batch has alpha, the weight of momentum's targets, but no momentum"
            )
        return None
    image, text = _features(momentum, "momentum", (rows, config.embed))
    features = Momentum(image, text)
    if queue is not None:
        image, text = _features(queue, "queue", (None, config.embed), "item")
        if len(text) != len(image):
            raise UserError(f"queue['image'] has {len(image)} rows, queue['text'] {len(text)}")
        item = arguments.integers(queue["item"], "queue['item']", "q", (len(image),), low=NO_ITEM)
        queue = Queue(image, text, jnp.asarray(item), jnp.zeros((), jnp.int32))
    alpha = arguments.real(0.0 if alpha is None else alpha, "alpha", 0.0, 1.0)
    return Given(features, queue, jnp.asarray(alpha, jnp.float32))


def _features(
    vectors: Any, what: str, shape: tuple[int | None, int], *others: str
) -> tuple[Array, Array]:
    """The unit vectors of pictures and texts."""
    check_keys(vectors, what, ("image", "text", *others))
    image, text = (
        arguments.unit_vectors(vectors[side], f"{what}[{side!r}]", shape)
        for side in ("image", "text")
    )
    return jnp.asarray(image), jnp.asarray(text)


def check_keys(fields: Any, what: str, names: tuple[str, ...]) -> None:
    """Raises unless `fields` is a mapping with exactly these names."""
    if not isinstance(fields, Mapping):
        raise UserError(f"the batch's {what} is a mapping of {', '.join(names)}")
    for name in names:
        if name not in fields:
            raise UserError(f"the batch's {what} has no {name!r}")
    for name in fields:
        if name not in names:
            raise UserError(unknown(f"the batch's {what}", str(name), names))


def _negatives(batch: Mapping[str, Any], item: Int[np.ndarray, " b"]) -> Negatives | None:
    chosen = batch.get("negatives")
    if chosen is None:
        return None
    check_keys(chosen, "negatives", ("clip", "text"))
    arrays, pairs = [], len(item)
    for side in ("clip", "text"):
        name = f"negatives[{side!r}]"
        rows = arguments.as_array(chosen[side], name)
        valid = rows.dtype.kind in "iu" and rows.shape == (pairs,)
        if not valid or (rows < 0).any() or (rows >= pairs).any():
            raise UserError(f"{name} are {str(rows.tolist())[:80]}: {pairs} rows of the batch")
        if (same := np.flatnonzero(item[rows] == item)).size:
            raise UserError(
                f"{name}: row {rows[same[0]]} is of item {item[same[0]]}, as is row {same[0]}; a "
                "negative is of another item"
            )
        arrays += [jnp.asarray(rows, jnp.int32), jnp.ones(pairs, bool)]
    return Negatives(*arrays)


def reference_batch(pixels: Any, mask: Any, text: Any) -> dict[str, np.ndarray]:
    """A batch from PyTorch's "b f 3 H W", "b f" and "b l"."""
    channels_first = arguments.floats(pixels, "pixels", "b f 3 H W", (None, None, 3, None, None))
    rows, frames = channels_first.shape[:2]
    ids = arguments.integers(text, "text", "b l", (rows, None))
    if not ids.shape[1]:
        raise UserError(f"text has the shape {ids.shape}: rows of no ids")
    return {
        "frames": np.moveaxis(channels_first, 2, -1),
        "frame_mask": arguments.mask_of(mask, "mask", "b f", (rows, frames)),
        "text": ids,
    }
