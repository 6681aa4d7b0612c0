"""Our UniAdapter on the tensors of the authors' code, and how far it is from what that computed.

Used by the test on golden numbers and by the script that made them (`golden/make_uniadapter.py`).
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict

from uniadapter_jax import mesh as meshes
from uniadapter_jax.backbones.bert import Memory
from uniadapter_jax.clip_states import clip_features, encode_clips, frame_features
from uniadapter_jax.convert import convert_weights
from uniadapter_jax.frame_weights import frame_factor
from uniadapter_jax.matching_losses import Momentum, Queue, average
from uniadapter_jax.model import put_adapter
from uniadapter_jax.partition import flat_names
from uniadapter_jax.tasks import get_task
from uniadapter_jax.tasks.base import Setting
from uniadapter_jax.tasks.matching import Given, Negatives
from uniadapter_jax.testing import official_names
from uniadapter_jax.weights import uniadapter_names
from uniadapter_jax.weights.adapter_directory import read_adapter
from uniadapter_jax.weights.directory import load_backbone
from uniadapter_jax.weights.sources import Hints

# As the script has them.
NEGATIVES = {"clip": (1, 2, 3, 0), "text": (3, 0, 1, 2)}
ALPHA, MOMENTUM, ANSWERS_OF, RANKED = 0.3, 0.995, (2, 1, 3, 1), 3


def load(tensors, heads, scratch):
    """(partition, config) from {official name: array} by way of `convert`."""
    scratch = pathlib.Path(scratch)
    tensors = {name: np.array(value, np.float32, order="C") for name, value in tensors.items()}
    safetensors.numpy.save_file(tensors, scratch / "checkpoint.safetensors")
    convert_weights(
        str(scratch / "checkpoint.safetensors"), str(scratch / "made"), hints=Hints(heads=heads)
    )
    base = load_backbone(str(scratch / "made"))
    return put_adapter(base, read_adapter(scratch / "made/adapter")), base.model.config


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
    part, config = load(tensors, heads, scratch)
    ours = _matching(part, config, given, case, frames=3 if name == "video" else 1)
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


def _matching(part, config, given, case, frames):
    """All that `case` may have of a retrieval step."""
    task = get_task("matching")
    options = ConfigDict({**task.options, "momentum": 0.0, "queue": 0, "frame_weights": frames > 1})
    clips = np.moveaxis(given["clips"][:, :frames], 2, -1).astype(np.float32)
    batch = {
        "frames": jnp.asarray(clips),
        "frame_mask": jnp.ones(clips.shape[:2], bool),
        "text": jnp.asarray(given["text"], jnp.int32),
        "item": jnp.asarray(given["item"], jnp.int32),
    }
    task = task.make(Setting(options, meshes.one_device(), config, len(clips), 1))
    exists = jnp.ones(len(clips), bool)
    clip, text = (jnp.asarray(NEGATIVES[side]) for side in ("clip", "text"))
    negatives = Negatives(clip, exists, text, exists)
    momentum, result = None, {}
    if "momentum_image" in case:
        momentum, result = _momentum(part, task, batch, given, case)
    losses = [name for name in ("itc", "itm") if f"{name}.loss" in case]
    backward = [name for name in losses if any(key.startswith(f"{name}.grad.") for key in case)]

    @jax.jit
    def run(trainable, momentum):
        def values(trainable):
            model = part.merge(trainable, part.frozen)
            _, metrics = task.loss(model, batch, None, momentum, negatives)
            return {name: metrics[name] for name in losses}

        found, pull = jax.vjp(values, trainable)
        ways = [{name: jnp.float32(name == of) for name in losses} for of in backward]
        states = _states(part.merge(trainable, part.frozen), batch, negatives, frames > 1)
        wanted = {name: value for name, value in states.items() if name in case}
        return wanted, found, [pull(way)[0] for way in ways]

    states, found, grads = run(part.trainable, momentum)
    result |= states | {f"{name}.loss": value for name, value in found.items()}
    for name, tree in zip(backward, grads, strict=True):
        named = official_names("uniadapter", tree)
        result |= {f"{name}.grad.{key}": gradient for key, gradient in named.items()}
    return result


def _states(model, batch, negatives, weighted):
    """What the model computes on the way to its losses, in their order of pairs."""
    clips = encode_clips(model, batch["frames"], batch["frame_mask"])
    mask = batch["text"] != 0
    words = model.encode_text(batch["text"], mask)
    text, single = model.text_features(words[:, 0]), frame_features(model, clips)
    own = jnp.arange(len(words))
    medium = jnp.concatenate([own, negatives.clip, own])
    about = jnp.concatenate([own, own, negatives.text])
    memory = Memory(clips.states, None, medium)
    if weighted:
        there = batch["frame_mask"][medium]
        factor = frame_factor(text[about][:, None], single[medium], there, clips.tokens)
        memory = memory._replace(factor=factor)
    ids = model.fusion_ids(batch["text"])[about]
    fused = model.fuse(ids[:, None], mask[about][:, None], memory)[:, 0]
    found = {
        "vision": clips.states.reshape(-1, clips.tokens, clips.states.shape[-1]),
        "text": words,
        "fused": fused,
        "match": model.match_logits(fused[:, 0]),
        "clip_features": clip_features(model, clips),
        "text_features": text,
    }
    return found | {"frame_features": single}


def _momentum(part, task, batch, given, case):
    """(what the loss is given, what came of an update and by the updated averages)."""
    before = {k.removeprefix("before."): v for k, v in case.items() if k.startswith("before.")}
    old = fill(part.trainable, official_names("uniadapter", part.trainable) | before)
    once = average(old, part.trainable, MOMENTUM)
    twice = average(once, part.trainable, MOMENTUM)
    after = jax.tree.map_with_path(
        lambda path, first, second: second if path[0].key in ("adapters", "vision") else first,
        once,
        twice,
    )

    @jax.jit
    def features(trainable):
        model = part.merge(trainable, part.frozen)
        clips, texts = task.encode_clips(model, batch), task.encode_texts(model, batch)
        return {"momentum_image": clips["clip"], "momentum_text": texts}

    named = official_names("uniadapter", after)
    result = features(after) | {f"after.{name}": value for name, value in named.items()}
    queue = [jnp.asarray(given[f"queue_{side}"], jnp.float32) for side in ("image", "text")]
    item = jnp.asarray(given["queue_item"], jnp.int32)
    theirs = Momentum(*(jnp.asarray(case[f"momentum_{side}"]) for side in ("image", "text")))
    return Given(theirs, Queue(*queue, item, jnp.zeros((), jnp.int32)), jnp.float32(ALPHA)), result


def fill(tree, official):
    """A tree like trainables that holds official tensors."""
    ours = dict(uniadapter_names.from_official(official))
    names = list(flat_names(tree))
    assert set(names) == set(ours)
    return jax.tree.unflatten(jax.tree.structure(tree), [jnp.asarray(ours[n]) for n in names])
