"""Several captions of a clip in a batch: the loss of all pairs, each clip encoded once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_accumulation import DROPOUT, retrieval
from test_losses import naive_loss
from test_ring_loss import mesh_of
from test_similarity import data, f32, naive

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.config import base_config, validate
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.tasks.retrieval.losses import (
    Comparison,
    Pairs,
    retrieval_loss,
    sigmoid_loss,
    with_each_caption,
)
from uniadapter_jax.tasks.retrieval.ring_loss import ring_retrieval_loss, ring_sigmoid_loss
from uniadapter_jax.training import accumulation

CLIPS, EACH = 8, 3
SCALE, BIAS = jnp.float32(2.3), jnp.float32(-1.5)
LOSSES = {
    "gather": (retrieval_loss, ()),
    "ring": (ring_retrieval_loss, ()),
    "sigmoid": (sigmoid_loss, (BIAS,)),
    "sigmoid_ring": (ring_sigmoid_loss, (BIAS,)),
}


def features():
    """Clips with three texts each; two rows show one clip."""
    text, frames, mask = data(n=CLIPS * EACH, m=CLIPS, f=3, c=6)
    item = np.arange(CLIPS, dtype=np.int32)
    item[5] = item[2]
    return text.reshape(CLIPS, EACH, -1), frames, mask, item


def naive_sigmoid(logits, names):
    signs = np.where(names[:, None] == names[None, :], 1.0, -1.0)
    return np.log1p(np.exp(-signs * logits)).sum() / len(logits)


def plain(kind, duplicates):
    """The loss in float64 by its formula, from all pairs written out."""
    text, frames, mask, item = features()
    frames, mask, item = (np.repeat(x, EACH, axis=0) for x in (frames, mask, item))
    cosines = naive("q_score", text.reshape(len(item), -1), frames, mask, 5.0)
    logits = np.exp(np.float64(SCALE)) * cosines
    if not kind.startswith("sigmoid"):
        return naive_loss(logits, item, duplicates)
    names = item if duplicates == "positive" else np.arange(len(item))
    return naive_sigmoid(logits + float(BIAS), names)


def loss_of(kind, duplicates, mesh):
    function, bias = LOSSES[kind]
    text, frames, mask, item = features()
    how = Comparison("q_score", 5.0, duplicates, mesh)

    def value(text, frames):
        clips = Pairs(text, frames, jnp.asarray(mask), jnp.asarray(item))
        return function(with_each_caption(clips, mesh), SCALE, *bias, how)[0]

    placed = jax.device_put(f32(text, frames), meshes.batch_sharding(mesh))
    return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))(*placed)


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("kind", "duplicates"),
    [
        ("gather", "negative"),
        ("gather", "positive"),
        ("ring", "positive"),
        slow("ring", "negative"),
        slow("sigmoid", "positive"),
        slow("sigmoid", "negative"),
        slow("sigmoid_ring", "positive"),
        slow("sigmoid_ring", "negative"),
    ],
)
def test_eight_devices_give_the_plain_formula(kind, duplicates):
    """Value in float64; the gradient of each, that of one device with the dense form."""
    value, gradients = loss_of(kind, duplicates, mesh_of(2, 4, 1))
    assert value == pytest.approx(plain(kind, duplicates), rel=1e-6)
    dense = "sigmoid" if kind.startswith("sigmoid") else "gather"
    _, wanted = loss_of(dense, duplicates, mesh_of(1, 1, 1))
    for found, alone in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(found, alone, atol=2e-6 * np.abs(alone).max())


def several(clips):
    texts = [tiny.batch(clips=clips, seed=seed)["text"] for seed in range(EACH)]
    batch = tiny.batch(clips=clips, frames=1)
    return {**batch, "text": jnp.stack(texts, axis=1)}


def gradient(part, batch, key=None):
    def loss(trainable):
        return retrieval(None).loss(part.merge(trainable, part.frozen), batch, key)[0]

    return jax.jit(jax.value_and_grad(loss))(part.trainable)


@pytest.mark.slow
def test_a_batch_with_each_clip_written_out_gives_the_same():
    part, batch = tiny.split("cross_modal_adapter", vision_layers=2), several(4)
    pairs = {name: jnp.repeat(x, EACH, axis=0) for name, x in batch.items() if name != "text"}
    pairs["text"] = batch["text"].reshape(4 * EACH, -1)
    found, wanted = gradient(part, batch), gradient(part, pairs)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * max(1.0, np.abs(theirs).max()))


@pytest.mark.slow
def test_parts_of_a_batch_give_the_whole_with_dropout():
    part = tiny.split("cross_modal_adapter", options=DROPOUT, vision_layers=2)
    batch, mesh, key = several(4), mesh_of(1, 1, 1), jax.random.key(7)
    task = retrieval(mesh)

    def merge(trainable):
        return part.merge(trainable, part.frozen)

    (loss, _), found = accumulation.value_and_grad(
        task, merge, part.trainable, batch, key, None, mesh=mesh, count=2
    )
    wanted = gradient(part, batch, key)
    for ours, theirs in zip(*map(jax.tree.leaves, ((loss, found), wanted)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * max(1.0, np.abs(theirs).max()))


def test_other_tasks_refuse_it_and_shapes_say_it():
    config = base_config("cross_modal_adapter")
    config.data.captions_per_clip = 4
    shape = get_task("retrieval").samples.batch_shapes(validate(config))["text"].shape
    assert shape == (config.train.batch_size, 4, config.data.words)
    config = base_config("lora", "matching")
    config.data.captions_per_clip = 4
    with pytest.raises(UserError, match=r"config.data.captions_per_clip=4: task 'matching'"):
        validate(config)
