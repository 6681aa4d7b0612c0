"""Joined frames (TempMe): the authors' features and gradients, padding, counts, and refusals."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import siglip_case
import tempme_case
import tiny
from ml_collections import ConfigDict
from test_accumulation import retrieval
from test_methods import noisy
from test_ring_loss import mesh_of

from uniadapter_jax.adapters.partition import partition
from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.backbones import joining, merging
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.config import base_config
from uniadapter_jax.data import images
from uniadapter_jax.data.loading.frames import RESIZES
from uniadapter_jax.inference.model import AdaptedModel
from uniadapter_jax.inference.model_card import _usage
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.parallel.sharding import Weights
from uniadapter_jax.runs.preflight import check_room
from uniadapter_jax.weights.adapter_directory import AdapterFiles
from uniadapter_jax.weights.families import FAMILIES

GOLDEN = pathlib.Path(__file__).parent / "golden" / "tempme.npz"
# Of layers of ViT-B/32 and B/16 with 12 frames: tokens of a group behind a join, and behind the
# layer, as `golden/make_tempme.py --print` has them from the authors' code.
TOKENS = {
    50: [*((n, n - 2) for n in range(50, 34, -2)), (48, 44), (62, 56), (118, 107), (107, 97)],
    197: [*((n, n - 2) for n in range(197, 181, -2)), (254, 229), (321, 289), (607, 547)],
}
TOKENS[197].append((547, 493))


def test_features_and_gradients_are_the_authors():
    with np.load(GOLDEN) as file:
        wanted = dict(file)
    found = tempme_case.ours()
    assert set(found) == set(wanted)
    for name, expected in wanted.items():
        limit = (2e-4 if name.startswith("grad.") else 2e-5) * np.abs(expected).max()
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=limit, err_msg=name)


@pytest.mark.parametrize("tokens", TOKENS)
def test_layers_have_as_many_tokens_as_the_authors(tokens):
    schedule = joining.Schedule(12, ((8, 2), (9, 2), (10, 3)), 2, 0.3, 0.1)
    assert schedule.positions == 12 + 6 + 3
    seen, now = [], tokens
    for step in schedule.steps(tokens, 12):
        ahead = now * step.joined - step.across
        now = ahead - step.within
        seen.append((ahead, now))
    assert seen == TOKENS[tokens]


def test_padding_merges_before_all_else_and_is_never_seen():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, 10, 6)), jnp.float32)  # two class tokens, eight patches
    x = x.at[:, 7].set(x[:, 2])  # padding that is like a patch
    size = jnp.asarray([[1.0] * 6 + [0.0] * 4])
    tokens = merging.Tokens(x, size)
    fewer = merging.fewer(tokens, x, 2, 2)  # half of the padding can go
    np.testing.assert_array_equal(fewer.size, [[1, 1, 1, 1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(fewer.x[:, [0, 1, 2, 3, 4, 5]], x[:, [0, 1, 2, 4, 3, 5]])
    fewer = merging.fewer(tokens, x, 3, 2)
    np.testing.assert_allclose(fewer.size.sum(), 6)
    assert fewer.size.max() == 2
    bias = merging.Merging(0, size, 2).bias[0, 0, 0]
    assert not bias[:6].any() and (bias[6:] == jnp.finfo(jnp.float32).min).all()


def split(layers=3, **options):
    """A shallow CLIP whose last two layers join two groups each, trained a while."""
    method = {"frames": 4, "joins": ("2:2", "1:2"), **options.pop("method", {})}
    part = tiny.split("tempme", vision_layers=layers, text_layers=1, options=method, **options)
    return dataclasses.replace(part, trainable=noisy(part.trainable))


def encoder(part):
    return jax.jit(
        lambda frames, mask: part.merge(part.trainable, part.frozen).encode_frames(
            frames, mask=mask
        )
    )


MASK = np.array([[True] * 4, [True, False, False, False], [True] * 3 + [False]])


@pytest.mark.parametrize("method", [{}, {"merged": 0, "across": 0.0, "within": 0.0}])
def test_what_pads_a_clip_changes_nothing(method):
    """Neither its pixels nor whether it is there; and no gradient enters it, nor is one lost.

    Where tokens merge, those of padding become zeros; where none do, they stay as they are.
    """
    part, frames = split(method=method), tiny.batch(clips=3, frames=4)["frames"]
    encode = encoder(part)
    found = encode(frames, MASK)
    assert np.isfinite(found).all()
    for other in (0, 255):
        changed = jnp.where(MASK[..., None, None, None], frames, jnp.uint8(other))
        np.testing.assert_array_equal(encode(changed, MASK)[MASK], found[MASK])
    for clip, length in ((1, 1), (2, 3)):
        alone = encode(frames[clip : clip + 1, :length], np.ones((1, length), bool))
        np.testing.assert_allclose(alone[0], found[clip, :length], atol=2e-5)
    assert np.abs(found - encode(frames, np.ones_like(MASK)))[2, :3].max() > 1e-3

    def value(pixels):
        return (encode(pixels, MASK)[MASK] ** 2).sum()

    gradient = jax.grad(value)(frames.astype(jnp.float32) / 255)
    assert np.isfinite(gradient).all() and not np.abs(gradient[~MASK]).max()
    assert np.abs(gradient[MASK]).max(axis=(1, 2, 3)).min() > 0


def test_a_picture_is_a_clip_of_one_frame():
    part = split()
    frames = tiny.batch(clips=2, frames=1)["frames"]
    model = part.merge(part.trainable, part.frozen)
    alone = jax.jit(model.encode_images)(frames[:, 0])
    found = encoder(part)(frames, np.ones((2, 1), bool))
    np.testing.assert_allclose(alone, found[:, 0], atol=1e-6)


def test_frames_see_each_other_and_keep_their_place():
    """A frame changes the features of all; those that are alike differ by their positions alone."""
    part, frames = split(), tiny.batch(clips=1, frames=4)["frames"]
    encode, whole = encoder(part), np.ones((1, 4), bool)
    found = encode(frames, whole)[0]
    moved = np.abs(encode(frames.at[0, 3].set(0), whole)[0] - found).max(axis=1)
    assert moved.min() > 1e-4 and moved.argmax() == 3
    alike = encode(jnp.repeat(frames[:, :1], 4, axis=1), whole)[0]
    assert min(np.abs(alike[i] - alike[j]).max() for i in range(4) for j in range(i)) > 1e-3
    part.trainable["vision"]["joins"]["positions"] *= 0
    still = encoder(part)(jnp.repeat(frames[:, :1], 4, axis=1), whole)[0]
    np.testing.assert_allclose(still, still[:1].repeat(4, axis=0), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("captions", [1, 2])
def test_the_task_says_which_frames_there_are(captions):
    part, batch = split(), tiny.batch(clips=3, frames=4)
    text = jnp.stack([batch["text"]] * captions, axis=1) if captions > 1 else batch["text"]
    batch = {**batch, "frame_mask": jnp.asarray(MASK), "text": text}
    task = retrieval(None)

    @jax.jit
    def loss(trainable, frames):
        model = part.merge(trainable, part.frozen)
        given = {**batch, "frames": frames}
        return task.loss(model, given, None)[0], task.encode_clips(model, given)

    frames = batch["frames"]
    changed = jnp.where(MASK[..., None, None, None], frames, jnp.uint8(0))
    one, other = loss(part.trainable, frames), loss(part.trainable, changed)
    assert one[0] == other[0]
    np.testing.assert_array_equal(one[1][MASK], other[1][MASK])


@pytest.mark.slow
def test_a_recomputed_step_and_one_in_parts_are_the_same():
    """Layers do different things, also where shapes are the same: none is traced for another."""
    batch, found = tiny.batch(clips=2, frames=4), []
    for options in ({}, {"remat": "full"}, {"remat": "dots", "frame_chunks": 2}):
        part = split(layers=4, method={"merged": 0}, **options)

        def value(trainable, part=part):
            model = part.merge(trainable, part.frozen)
            return (model.encode_frames(batch["frames"]) ** 2).sum()

        found.append(jax.jit(jax.value_and_grad(value))(part.trainable))
    for other in found[1:]:
        for ours, wanted in zip(*map(jax.tree.leaves, (other, found[0])), strict=True):
            np.testing.assert_allclose(ours, wanted, atol=1e-4 * max(1.0, np.abs(wanted).max()))


@pytest.mark.slow
def test_features_on_eight_devices_are_those_of_one():
    part, frames = split(), np.asarray(tiny.batch(clips=8, frames=4)["frames"])
    mask = np.asarray(MASK[[0, 1, 2, 0] * 2])
    wanted = encoder(part)(jnp.asarray(frames), mask)
    mesh, config = mesh_of(2, 2, 2), base_config()
    config.mesh.weights = "sharded"
    part.weights = Weights.of(config.mesh, mesh, tiny.clip().config)
    frozen, trained = part.weights.put(part.frozen), meshes.put_replicated(part.trainable, mesh)
    batch = meshes.put_batch({"frames": frames, "mask": mask}, mesh, 8)
    found = jax.jit(
        lambda trained, frozen, batch: part.merge(trained, frozen).encode_frames(**batch)
    )(trained, frozen, batch)
    np.testing.assert_allclose(np.asarray(found)[mask], wanted[mask], atol=2e-5)


@pytest.mark.slow
def test_a_model_for_inference_takes_clips():
    part, frames = split(), np.asarray(tiny.batch(clips=3, frames=4)["frames"])
    options = {"method": "tempme", "fingerprint": "", "task": {}, "batch_size": 8}
    model = AdaptedModel(part, tiny.clip().config, None, **options)
    wanted = np.where(MASK[..., None], encoder(part)(frames, MASK), 0)
    found, mask = model.media_features(frames, MASK)
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    np.testing.assert_array_equal(mask, MASK)
    larger = frames.repeat(2, axis=2).repeat(2, axis=3)
    alike = np.stack([images.resized(clip, 32, RESIZES["crop"]) for clip in larger])
    wanted = model.encode_clips(alike, MASK)
    np.testing.assert_allclose(model.encode_clips(larger, MASK), wanted, atol=2e-5)
    with pytest.raises(UserError, match="'tempme' joins the frames of a clip; use encode_clips"):
        model.encode_frames(frames[0])


def test_the_card_of_an_adapter_shows_clips():
    for method, call in (("tempme", "encode_clips"), ("lora", "encode_frames")):
        card = "".join(_usage(AdapterFiles(method, {}, {}, ""), FAMILIES["clip"]))
        assert f"model.{call}(pixels)" in card and card.count("model.encode_") == 2


def attach(model, **options):
    method = get_method("tempme")
    method.attach(model, ConfigDict({**method.options, **options}), generator(0, "adapters"))
    return partition(model, method.trainable)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"frames": 10}, r"method\.frames=10: .* joins 12 frames; .* a multiple of that"),
        ({"joins": ()}, r"method\.joins=\(\) joins 1 frames; choose joins of at least 2"),
        ({"joins": ("2-3",)}, r"method\.joins: '2-3' is not LAYER:FRAMES, such as '2:3'"),
        ({"joins": ("0:3",)}, r"method\.joins: '0:3' is not"),
    ],
)
def test_joins_that_do_not_fit_are_named(options, said):
    with pytest.raises(UserError, match=said):
        attach(tiny.clip(), **options)


def test_joins_below_a_shallow_tower_come_together_in_its_first_layer():
    for layers, joins, positions in (
        (2, ((0, 12),), 12),
        (3, ((0, 4), (1, 3)), 15),
        (4, ((0, 2), (1, 2), (2, 3)), 21),
    ):
        model = tiny.clip("tempme", vision_layers=layers)
        assert model.vision.joins.schedule.joins == joins
        assert model.vision.joins.positions.shape == (positions, 48)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compute.merge": 2}, r"config\.compute\.merge=2: method 'tempme' merges tokens itself"),
        ({"compute.frame_chunks": 2}, r"config\.compute\.frame_chunks=2: .* set it to 0"),
        ({"data.frames": 13}, r"config\.data\.frames=13: .* config\.method\.frames=12; set both"),
    ],
)
def test_what_a_run_cannot_do_with_it_is_refused(changes, said):
    config, model = base_config("tempme"), tiny.clip("tempme")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=said):
        check_room(config, model)
    check_room(base_config("tempme"), model)


def test_what_it_cannot_read_is_refused():
    for model in (siglip_case.siglip(), tiny.blip()):
        with pytest.raises(UserError, match=r"does not fit this backbone.*no place 'joins'"):
            attach(model)
    frames = tiny.batch(clips=1, frames=13)["frames"]
    with pytest.raises(UserError, match=r"method\.frames=12: a clip of 13 frames has more"):
        tiny.clip("tempme").encode_frames(frames)
    with pytest.raises(UserError, match=r"merge=2: the method merges tokens itself"):
        tiny.clip("tempme", merge=2).encode_frames(frames[:, :2])
