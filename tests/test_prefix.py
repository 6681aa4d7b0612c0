"""What is frozen ahead of a method, handed in again: the same loss and gradients as from frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import siglip_case
import tiny
from ml_collections import ConfigDict
from test_accumulation import retrieval
from test_methods import noisy

from uniadapter_jax.adapters.partition import partition
from uniadapter_jax.adapters.registry import METHODS, get_method
from uniadapter_jax.common.randomness import generator

PARTS = sorted(name for name, m in METHODS.items() if m.layered or m.behind_layers)
FAST = ("projection", "unipt")


def case(name, model=None):
    """The partition of a tower cut at its second layer, or not at all, and trained a while."""
    model = tiny.clip(vision_layers=3) if model is None else model
    method = get_method(name)
    options = ConfigDict({**method.options})
    if method.layered:
        options.from_layer = 1
    if "dropout" in options:
        options.dropout = 0.3
    method.attach(model, options, generator(0, "adapters"))
    part = partition(model, method.filter(options))
    return part, noisy(part.trainable)


def known(part, trainable, batch):
    @jax.jit
    def run(frozen, frames, text):
        model = part.merge(trainable, frozen)
        return model.known_frames(frames), model.known_text(text)

    frames, text = run(part.frozen, batch["frames"], batch["text"])
    rest = {name: x for name, x in batch.items() if name != "frames"}
    return {**rest, "known_frames": frames, "known_text": text}


def step(part):
    """The program of a loss and its gradient, with dropout."""
    task, key = retrieval(None), jax.random.key(3)

    def loss(trainable, batch):
        return task.loss(part.merge(trainable, part.frozen), batch, key)[0]

    return jax.jit(jax.value_and_grad(loss))


def check(part, trainable, batch):
    given = known(part, trainable, batch)
    run = step(part)
    found, wanted = run(trainable, given), run(trainable, batch)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1.0, np.abs(theirs).max()))
    return given


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in PARTS]
)
def test_it_gives_the_loss_and_gradients_of_frames(name):
    part, trainable = case(name)
    given = check(part, trainable, tiny.batch(clips=2, frames=2))
    shapes = given["known_frames"].shape, given["known_text"].shape
    if METHODS[name].layered:
        assert shapes == ((2, 2, 17, 48), (2, 6, 32))
    elif name == "unipt":
        assert shapes == ((2, 2, 4, 17, 48), (2, 3, 6, 32))
    else:
        assert shapes == ((2, 2, 1, 48), (2, 32))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cross_modal_adapter", "projection", "unipt"])
def test_a_siglip_has_one_too(name):
    part, trainable = case(name, siglip_case.siglip())
    batch = tiny.batch(clips=2, frames=2)
    size = part.merge(trainable, part.frozen).config.image_size
    frames = jnp.asarray(
        np.random.default_rng(0).integers(0, 256, (2, 2, size, size, 3)), jnp.uint8
    )
    check(part, trainable, {**batch, "frames": frames, "text": batch["text"] % 20 + 2})
