"""The matching task: against a plain reading of its formulas, and the same on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from uniadapter_jax.adapters.partition import count, partition
from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.backbones.memory import Memory
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.config import base_config
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.tasks.base import Setting, place_state
from uniadapter_jax.tasks.clip_states import clip_features, encode_clips, frame_features
from uniadapter_jax.tasks.frame_weights import frame_factor
from uniadapter_jax.tasks.matching import losses
from uniadapter_jax.tasks.matching.losses import Queue
from uniadapter_jax.tasks.matching.task import Negatives
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.training.optimizers import make_optimizer
from uniadapter_jax.training.step import init_opt_state, make_step

N, WORDS = 8, 6
KIND = get_task("matching")


@functools.cache
def adapted(seed=0):
    """A tiny BLIP with UniAdapter, none of whose parts is zero."""
    model = tiny.blip(parts=("BlipForImageTextRetrieval",))
    method = get_method("uniadapter")
    options = ConfigDict({**method.options, "bottleneck": 4, "key_value_bottleneck": 3})
    method.attach(model, options, generator(seed, "adapters"))
    part = partition(model, method.trainable)
    rng = np.random.default_rng(seed)
    part.trainable = jax.tree.map(
        lambda x: x + 0.1 * jnp.asarray(rng.standard_normal(x.shape), jnp.float32), part.trainable
    )
    return part, model.config


def make_task(mesh, **options):
    given = ConfigDict({**KIND.options, "queue": 3 * N, **options})
    return KIND.make(Setting(given, mesh, adapted()[1], N, 4))


def one():
    return meshes.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])


def batch(frames=1, seed=0):
    rng = np.random.default_rng(seed)
    text = rng.integers(6, 58, (N, WORDS)).astype(np.int32)
    text[:, -2:] *= rng.integers(0, 2, (N, 1)).astype(np.int32)  # some are padded
    mask = np.ones((N, frames), bool)
    mask[: N // 2, 1:] = False
    return {
        "frames": rng.integers(0, 256, (N, frames, 32, 32, 3)).astype(np.uint8),
        "frame_mask": mask,
        "text": text,
        "item": np.array([0, 1, 2, 2, 4, 5, 6, 7], np.int32),
    }


def negatives(seed=3):
    rng = np.random.default_rng(seed)
    clip, text = ((np.arange(N) + rng.integers(3, 6, N)) % N for _ in range(2))
    exists = np.ones(N, bool)
    return Negatives(*map(jnp.asarray, (clip.astype(np.int32), exists, text.astype(np.int32))),
                     jnp.asarray(np.arange(N) != 5))  # fmt: skip


def by_pairs(model, given, drawn, frame_weights):
    """ITM one pair at a time."""
    clips = encode_clips(model, jnp.asarray(given["frames"]), jnp.asarray(given["frame_mask"]))
    mask = jnp.asarray(given["text"] != 0)
    ids = jnp.asarray(given["text"])
    text = model.text_features(model.encode_text(ids, mask)[:, 0])
    frames = frame_features(model, clips)

    @jax.jit
    def logits(t, c):
        factor = None
        if frame_weights:
            factor = frame_factor(
                text[t][None, None], frames[c][None], clips.frame_mask[c][None], clips.tokens
            )
        seen = None if clips.mask is None else clips.mask[c][None]
        memory = Memory(clips.states[c][None], seen, factor=factor)
        row = model.fusion_ids(ids[t])[None, None]
        return model.match_logits(model.fuse(row, mask[t][None, None], memory)[0, 0, 0])

    pairs = [(i, i) for i in range(N)]
    pairs += [(i, int(drawn.clip[i])) for i in range(N)]
    pairs += [(int(drawn.text[i]), i) for i in range(N)]
    counts = np.concatenate([np.ones(N, bool), drawn.clip_exists, drawn.text_exists])
    shares = [jax.nn.log_softmax(logits(t, c))[int(k < N)] for k, (t, c) in enumerate(pairs)]
    return -np.asarray(shares)[counts].mean(), clip_features(model, clips), text


@pytest.mark.parametrize(
    ("frames", "frame_weights"), [pytest.param(1, False, marks=pytest.mark.slow), (3, True)]
)
def test_the_loss_is_contrast_plus_matching_pair_by_pair(frames, frame_weights):
    part, _ = adapted()
    given, drawn = batch(frames), negatives()
    found = {}
    for mesh in (one(), meshes.make_mesh({"data": 4, "fsdp": 2, "tensor": 1})):
        task = make_task(mesh, frame_weights=frame_weights)

        @jax.jit
        def loss(trainable, frozen, batch, task=task):
            return task.loss(part.merge(trainable, frozen), batch, None, None, drawn)

        total, values = loss(
            *(meshes.put_replicated(tree, mesh) for tree in (part.trainable, part.frozen)),
            meshes.put_batch(given, mesh, len(given["item"])),
        )
        found[mesh.size] = [float(total), *(float(values[name]) for name in ("itc", "itm"))]
    model = part.merge(part.trainable, part.frozen)
    itm, clip, text = by_pairs(model, given, drawn, frame_weights)
    itc = losses.itc_loss(clip, text, jnp.asarray(given["item"]), model.temp[...])
    np.testing.assert_allclose(found[1], [itc + itm, itc, itm], rtol=1e-5)
    np.testing.assert_allclose(found[8], found[1], rtol=2e-6)


def run_steps(mesh, steps=4, **options):
    """(losses, trainables, task's state) of some steps of the real training step."""
    part, _ = adapted()
    config = base_config("uniadapter", "matching")
    config.optimizer.lr, config.optimizer.warmup = 1e-2, 0.0
    task = make_task(mesh, **options)
    part.trainable, part.frozen = (
        meshes.put_replicated(tree, mesh) for tree in (part.trainable, part.frozen)
    )
    trainable = jax.tree.map(jnp.copy, part.trainable)
    optimizer = make_optimizer(config.optimizer, 10, trainable)
    state = init_opt_state(optimizer, trainable, mesh)
    kept = place_state(task, trainable, mesh)
    step = make_step(task, part, optimizer, mesh, seed=0)
    found = []
    for i in range(steps):
        given = meshes.put_batch(batch(2, seed=i), mesh, N)
        trainable, state, kept, metrics = step(
            trainable, state, kept, part.frozen, given, np.int32(i)
        )
        assert not np.any(metrics["nonfinite"])
        found.append([float(metrics[name]) for name in ("loss", "itc", "itm")])
    assert step.programs() == 1
    return np.array(found), trainable, kept


@functools.cache
def on_one_device():
    return run_steps(one(), frame_weights=True)


# By day test_blip_runs has a replicated queue on eight devices.
@pytest.mark.parametrize(
    "sharding", [pytest.param("replicated", marks=pytest.mark.slow), "sharded"]
)
def test_eight_devices_train_as_one(sharding):
    """Dropout, negatives, momentum and the queue included."""
    single, _, kept = on_one_device()
    mesh = meshes.make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    found, _, there = run_steps(mesh, frame_weights=True, queue_sharding=sharding)
    np.testing.assert_allclose(found, single, rtol=2e-5)
    np.testing.assert_array_equal(there["queue"].item, kept["queue"].item)
    np.testing.assert_allclose(there["queue"].image, kept["queue"].image, atol=2e-4)
    local = there["queue"].image.addressable_data(0).shape[0]
    assert local == (3 * N if sharding == "replicated" else 3 * N // 8)


def test_momentum_averages_trainables_alone_and_writes_the_queue_last():
    part, _ = adapted()
    task = make_task(one(), momentum=0.9)
    state = task.init_state(part.trainable)
    assert sum(x.nbytes for x in jax.tree.leaves(state["averaged"])) == 4 * count(part.trainable)
    moved = jax.tree.map(lambda x: x + 1.0, part.trainable)
    given, following = task.begin(
        state,
        moved,
        lambda tree: part.merge(tree, part.frozen),
        {name: jnp.asarray(x) for name, x in batch().items()},
        jnp.int32(2),
    )
    for old, new in zip(
        *map(jax.tree.leaves, (part.trainable, following["averaged"])), strict=True
    ):
        np.testing.assert_allclose(new, old + 0.1, rtol=1e-5, atol=1e-6)
    assert float(given.alpha) == pytest.approx(0.2)  # half of the first epoch
    assert np.all(given.queue.item == losses.NO_ITEM)
    assert list(following["queue"].item[:N]) == list(batch()["item"])
    np.testing.assert_array_equal(following["queue"].text[:N], given.momentum.text)


def test_a_batch_of_one_item_trains_without_negatives():
    part, _ = adapted()
    task = make_task(one(), momentum=0.0, queue=0)
    given = {name: jnp.asarray(x) for name, x in batch().items()}
    given["item"] = jnp.zeros(N, jnp.int32)
    model = part.merge(part.trainable, part.frozen)
    loss, values = task.loss(model, given, jax.random.key(0))
    assert all(np.isfinite(float(x)) for x in (loss, *values.values()))
    assert task.init_state(part.trainable) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue": 20}, r"config\.task\.queue=20 does not divide by the batch of 8"),
        ({"momentum": 0.0}, "a queue holds momentum's features"),
        ({"momentum": 1.0}, r"config\.task\.momentum=1\.0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        make_task(one(), **options)


def test_a_queue_cut_over_devices_divides_over_them():
    mesh = meshes.make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    setting = Setting(
        ConfigDict({**KIND.options, "queue": 12, "queue_sharding": "sharded"}),
        mesh,
        adapted()[1],
        4,
        4,
    )
    with pytest.raises(UserError, match=r"config\.task\.queue=12 does not divide over 8"):
        KIND.make(setting)
    assert isinstance(make_task(mesh).init_state(adapted()[0].trainable)["queue"], Queue)
