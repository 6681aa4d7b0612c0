"""Our UniAdapter on the tensors of the authors' code, and how far it is from what that computed.

Used by the test on golden numbers and by the script that made them (`golden/make_uniadapter.py`).
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from uniadapter_jax import load_model
from uniadapter_jax.adapters.partition import flat_names
from uniadapter_jax.backbones.memory import Memory
from uniadapter_jax.convert import convert_weights
from uniadapter_jax.tasks.clip_states import clip_features, encode_clips, frame_features
from uniadapter_jax.tasks.frame_weights import frame_factor
from uniadapter_jax.testing import loss_and_grads, momentum_update, official_names, rank_scores
from uniadapter_jax.weights.names import uniadapter as uniadapter_names
from uniadapter_jax.weights.sources import Hints

# As the script has them.
NEGATIVES = {"clip": (1, 2, 3, 0), "text": (3, 0, 1, 2)}
ALPHA, MOMENTUM, ANSWERS_OF, RANKED = 0.3, 0.995, (2, 1, 3, 1), 3


def load(tensors, heads, scratch):
    """A model from {official name: array} by way of `convert`."""
    scratch = pathlib.Path(scratch)
    tensors = {name: np.array(value, np.float32, order="C") for name, value in tensors.items()}
    safetensors.numpy.save_file(tensors, scratch / "checkpoint.safetensors")
    source, made = str(scratch / "checkpoint.safetensors"), scratch / "made"
    convert_weights(source, str(made), hints=Hints(heads=heads))
    return load_model(made, made / "adapter")


def apart(found, expected):
    """Largest difference over the largest expected magnitude."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def differences(name, case, given, tensors, heads, scratch):
    """{what: how far ours is from the authors'} for a case of their numbers.

    Where they have no gradient, because a loss does not use the tensor, or one that cancels, there
    is `none.NAME` instead: our largest magnitude.
    """
    model = load(tensors, heads, scratch)
    made = _answering if name == "vqa" else _matching
    ours = made(model, given, case, frames=3 if name == "video" else 1)
    assert {k for k in case if not k.startswith("before.")} <= set(ours)
    result = {}
    for key, value in ours.items():
        if key in case and not vanishing(name, key):
            result[key] = apart(value, case[key])
        elif ".grad." in key:
            result[f"none.{key}"] = float(np.abs(value).max())
    return result


def vanishing(name, key):
    """Whether a gradient is zero: a constant on all keys cancels, unless frames have weights."""
    of_keys = "video_key_adapter" in key and key.endswith("bias")
    return ".grad." in key and of_keys and name != "video"


def _losses(model, batch, name, case, **task):
    """The loss of that name, its parts and, where the case has any, its gradients."""
    losses, grads = loss_and_grads(model, batch, {"name": name, **task})
    found = {f"{name}.loss": losses.pop("loss")}
    found |= {f"{part}.loss": value for part, value in losses.items()}
    if _has_gradients(case, name):
        found |= {f"{name}.grad.{key}": gradient for key, gradient in grads.items()}
    return found


def _has_gradients(case, name):
    return any(key.startswith(f"{name}.grad.") for key in case)


def _matching(model, given, case, frames):
    """All that a case of retrieval may have."""
    batch = {
        "frames": np.moveaxis(given["clips"][:, :frames], 2, -1).astype(np.float32),
        "text": given["text"],
        "item": given["item"],
        "negatives": NEGATIVES,
    }
    result = {}
    if "momentum_image" in case:
        result = _momentum(model, batch, case)
        sides = ("image", "text")
        batch |= {
            "momentum": {side: case[f"momentum_{side}"] for side in sides},
            "queue": {side: given[f"queue_{side}"] for side in (*sides, "item")},
            "alpha": ALPHA,
        }
    for name in ("matching", "itc", "itm"):
        new = f"{name}.loss" in case and f"{name}.loss" not in result
        if new or _has_gradients(case, name):
            result |= _losses(model, batch, name, case, frame_weights=frames > 1)
    part = model.partition

    @jax.jit
    def states(trainable):
        found = _states(part.merge(trainable, part.frozen), batch, weighted=frames > 1)
        return {name: value for name, value in found.items() if name in case}

    result |= states(part.trainable)
    if "itc.loss" not in case:  # the same by the library's own door
        result["match"] = _matched(model, batch, weighted=frames > 1)
    return result


def _matched(model, batch, weighted):
    """Logits of the pairs, in the authors' order."""
    model.task["frame_weights"] = weighted
    logits = model.match(batch["frames"], np.asarray(batch["text"]))
    own, clip, text = np.arange(len(logits)), *map(np.asarray, NEGATIVES.values())
    return np.concatenate([logits[own, own], logits[own, clip], logits[text, own]])


def _states(model, batch, weighted):
    """What the model computes on the way to its losses, in the authors' order of pairs."""
    frames, ids = jnp.asarray(batch["frames"]), jnp.asarray(batch["text"], jnp.int32)
    clips = encode_clips(model, frames, jnp.ones(frames.shape[:2], bool))
    mask, own = ids != 0, jnp.arange(len(ids))
    words = model.encode_text(ids, mask)
    text, single = model.text_features(words[:, 0]), frame_features(model, clips)
    medium = jnp.concatenate([own, jnp.asarray(NEGATIVES["clip"]), own])
    about = jnp.concatenate([own, own, jnp.asarray(NEGATIVES["text"])])
    memory = Memory(clips.states, None, medium)
    if weighted:
        there = clips.frame_mask[medium]
        factor = frame_factor(text[about][:, None], single[medium], there, clips.tokens)
        memory = memory._replace(factor=factor)
    fused = model.fuse(model.fusion_ids(ids)[about][:, None], mask[about][:, None], memory)[:, 0]
    return {
        "vision": clips.states.reshape(-1, clips.tokens, clips.states.shape[-1]),
        "text": words,
        "fused": fused,
        "match": model.match_logits(fused[:, 0]),
        "frame_features": single,
        "clip_features": clip_features(model, clips),
        "text_features": text,
    }


def _momentum(model, batch, case):
    """What comes of an update, and features by the updated averages."""
    before = {k.removeprefix("before."): v for k, v in case.items() if k.startswith("before.")}
    now = official_names("uniadapter", model.partition.trainable)
    once = momentum_update(model, now | before, MOMENTUM)
    twice = momentum_update(model, once, MOMENTUM)
    after = {k: (twice if k.startswith("adapters.") else once)[k] for k in now}
    kept, part = model.partition.trainable, model.partition
    part.trainable = fill(kept, after)
    found = {
        "momentum_image": model.encode_clips(batch["frames"]),
        "momentum_text": model.encode_text(np.asarray(batch["text"])),
    }
    part.trainable = kept
    return found | {f"after.{name}": value for name, value in after.items()}


def fill(tree, official):
    """A tree like trainables that holds official tensors."""
    ours = dict(uniadapter_names.from_official(official))
    names = list(flat_names(tree))
    assert set(names) == set(ours)
    return jax.tree.unflatten(jax.tree.structure(tree), [jnp.asarray(ours[n]) for n in names])


def _answering(model, given, case, frames):
    """All that the case of questions has."""
    rows, width = len(ANSWERS_OF), max(ANSWERS_OF)
    answer = np.zeros((rows, width, given["answers"].shape[1]), np.int32)
    weight = np.zeros((rows, width), np.float32)
    place = [(row, i) for row, count in enumerate(ANSWERS_OF) for i in range(count)]
    row, column = np.array(place).T
    answer[row, column], weight[row, column] = given["answers"], given["answer_weight"]
    batch = {
        "frames": np.moveaxis(given["clips"][:, :frames], 2, -1).astype(np.float32),
        "question": given["text"],
    }
    part = model.partition

    @jax.jit
    def states(trainable):
        blip = part.merge(trainable, part.frozen)
        clips, ids = jnp.asarray(batch["frames"][:, 0]), jnp.asarray(batch["question"], jnp.int32)
        mask = ids != 0
        memory = Memory(blip.encode_images(clips))
        question = blip.fuse(blip.fusion_ids(ids)[:, None], mask[:, None], memory)[:, 0]
        words = jnp.asarray(answer)
        scores = blip.decode(words, words != 0, Memory(question, mask))
        return {"question": question, "decoder": scores[row, column]}

    options = {"name": "vqa", "rank_k": RANKED}
    best, scores = rank_scores(model, batch, given["candidates"], options)
    chosen = np.argsort(-case["rank_scores"], axis=1)
    order = np.take_along_axis(case["rank_order"], chosen, axis=1)
    np.testing.assert_array_equal(best, order)
    back = np.argsort(chosen, axis=1)
    result = states(part.trainable) | {
        "rank_scores": np.take_along_axis(scores, back, axis=1),
        "rank_order": np.take_along_axis(best, back, axis=1),
        "best": best[:, 0],
    }
    batch |= {"answer": answer, "answer_weight": weight}
    return result | _losses(model, batch, "vqa", case)
