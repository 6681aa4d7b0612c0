"""Batches for `testing`: what each task reads, checked and put on the device.

`retrieval` is in `testing`. BLIP's have `frames` and `frame_mask` like it, and

    matching, itc, itm
        text            "b l"     ids, [CLS] first, then 0 where a text has ended
        item            "b"       left out: every row its own
        negatives       {"clip": "b", "text": "b"}: for each text the row of a clip that does not
                        match, for each clip the row of such a text; all count. `itc` needs none
        momentum        {"image": "b c", "text": "b c"}: unit vectors of the batch by the averages
        queue           {"image": "q c", "text": "q c", "item": "q"}; needs momentum
        alpha           the weight of momentum's targets; 0 if not said
    vqa
        question        "b l"     as text
        answer          "b p a"   [DEC] first, [SEP] last, then 0
        answer_weight   "b p"     0 where there is no answer
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from uniadapter_jax.errors import UserError, unknown
from uniadapter_jax.matching_losses import Momentum, Queue
from uniadapter_jax.tasks.matching import Given, Negatives
from uniadapter_jax.types import Array

_FRAMES = ("frames", "frame_mask")
_PAIRS = (*_FRAMES, "text", "item")
_GIVEN = ("negatives", "momentum", "queue", "alpha")
FIELDS: Mapping[str, tuple[str, ...]] = {
    "retrieval": _PAIRS,
    "matching": _PAIRS + _GIVEN,
    "vqa": (*_FRAMES, "question", "answer", "answer_weight"),
}


def device_batch(batch: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The arrays that the task of that name reads; of `matching` also `given` and `negatives`.

    Raises:
      UserError: a field that the task does not know, or lacks, or whose shape cannot be.
    """
    for name in batch:
        if name not in FIELDS[kind]:
            raise UserError(unknown("the batch", name, FIELDS[kind]))
    ids = "question" if kind == "vqa" else "text"
    for name in ("frames", ids, *(("answer", "answer_weight") if kind == "vqa" else ())):
        if name not in batch:
            raise UserError(f"the batch has no {name!r}; a batch of {kind} needs it")
    frames, text = np.asarray(batch["frames"]), np.asarray(batch[ids], np.int32)
    if frames.ndim != 5 or text.ndim != 2 or len(frames) != len(text):
        raise UserError(
            f"frames {frames.shape} and {ids} {text.shape} are not (b, f, H, W, 3) and (b, l)"
        )
    frames = frames if frames.dtype == np.uint8 else frames.astype(np.float32)
    mask = np.asarray(batch.get("frame_mask", np.ones(frames.shape[:2], bool)), bool)
    found: dict[str, Any] = {
        "frames": jnp.asarray(frames),
        "frame_mask": jnp.asarray(mask),
        ids: jnp.asarray(text),
    }
    if kind == "vqa":
        return found | _answers(batch, len(text))
    item = np.asarray(batch.get("item", np.arange(len(text))), np.int32)
    found["item"] = jnp.asarray(item)
    if kind == "matching":
        found |= {"given": _given(batch), "negatives": _negatives(batch, len(item))}
    return found


def _answers(batch: Mapping[str, Any], rows: int) -> dict[str, Array]:
    answer = np.asarray(batch["answer"], np.int32)
    weight = np.asarray(batch["answer_weight"], np.float32)
    if answer.ndim != 3 or weight.shape != answer.shape[:2] or len(answer) != rows:
        raise UserError(
            f"answer {answer.shape} and answer_weight {weight.shape} are not (b, p, a) and (b, p) "
            f"of {rows} questions"
        )
    return {"answer": jnp.asarray(answer), "answer_weight": jnp.asarray(weight)}


def _given(batch: Mapping[str, Any]) -> Given | None:
    momentum, queue = batch.get("momentum"), batch.get("queue")
    if momentum is None:
        if queue is not None:
            raise UserError("the batch has a queue, but no momentum features of its own pairs")
        return None
    features = Momentum(*(_features(momentum, "momentum", side) for side in ("image", "text")))
    if queue is not None:
        image, text = (_features(queue, "queue", side) for side in ("image", "text"))
        item = jnp.asarray(np.asarray(queue["item"], np.int32))
        queue = Queue(image, text, item, jnp.zeros((), jnp.int32))
    return Given(features, queue, jnp.asarray(batch.get("alpha", 0.0), jnp.float32))


def _features(given: Mapping[str, Any], what: str, side: str) -> Array:
    if side not in given:
        raise UserError(f"the batch's {what} has no {side!r}")
    return jnp.asarray(np.asarray(given[side], np.float32))


def _negatives(batch: Mapping[str, Any], pairs: int) -> Negatives | None:
    given = batch.get("negatives")
    if given is None:
        return None
    found = []
    for side in ("clip", "text"):
        rows = np.asarray(given.get(side, ()), np.int32)
        if rows.shape != (pairs,) or (rows < 0).any() or (rows >= pairs).any():
            raise UserError(f"negatives[{side!r}] are {rows.tolist()}: {pairs} rows of the batch")
        found += [jnp.asarray(rows), jnp.ones(pairs, bool)]
    return Negatives(*found)


def reference_batch(pixels: Any, mask: Any, text: Any) -> dict[str, np.ndarray]:
    """PyTorch's "b f 3 H W", "b f" and "b l" as a batch."""
    return {
        "frames": np.moveaxis(np.asarray(pixels, np.float32), 2, -1),
        "frame_mask": np.asarray(mask, bool),
        "text": np.asarray(text, np.int32),
    }
