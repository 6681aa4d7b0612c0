"""One table of methods, one set of tests for all rows; then what is particular to each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from ml_collections import ConfigDict

from uniadapter_jax.adapters.base import slot_of_layer
from uniadapter_jax.adapters.partition import count, flat_names
from uniadapter_jax.adapters.registry import METHODS, AdapterParam, get_method
from uniadapter_jax.adapters.targets import WITHOUT_GRADIENT
from uniadapter_jax.backbones import scan
from uniadapter_jax.backbones.clip import CLIP, CLIPConfig
from uniadapter_jax.backbones.linear import Linear
from uniadapter_jax.common.errors import UserError

TRAINING = sorted(set(METHODS) - {"zero_shot"})
ADDING = [name for name, method in METHODS.items() if method.trainable is AdapterParam]
# Methods that start near the frozen model, not at it, by their authors' initial values: the towers,
# and how near. What adds tokens is as far as they weigh beside a tiny model's own few.
NEAR = {
    "cross_modal_adapter": (("vision", "text"), 0.05),
    "uniadapter": (("vision",), 0.05),
    "vpt_deep": (("vision",), 0.5),
    "ssf": (("vision", "text"), 0.3),
    "clip_adapter": (("vision",), 0.5),
    "unipt": (("vision", "text"), 2.0),
    "tempme": (("vision",), 2.0),
    "coop": (("text",), 2.0),
    "vl_prompt": (("vision", "text"), 2.0),
    "maple": (("vision", "text"), 2.0),
}


def encoded(model, batch):
    return jax.jit(
        lambda: (model.encode_frames(batch["frames"]), model.encode_text(batch["text"]))
    )()


def features(part, batch, trainable=None):
    return encoded(
        part.merge(part.trainable if trainable is None else trainable, part.frozen), batch
    )


@functools.cache
def of_the_bare_model(vision_layers, text_layers):
    bare = tiny.clip(vision_layers=vision_layers, text_layers=text_layers)
    return encoded(bare, tiny.batch())


@pytest.mark.parametrize("name", TRAINING)
def test_every_trainable_gets_a_gradient_and_nothing_else_is_in_the_tree(name):
    part = tiny.split(name)
    batch = tiny.batch()
    keys = jax.random.split(jax.random.key(5), 2)

    def loss(trainable):
        noisy = jax.tree.map(lambda x: x + 0.01, trainable)  # LoRA's B starts at zero
        model = part.merge(noisy, part.frozen)
        v, t = model.encode_frames(batch["frames"]), model.encode_text(batch["text"])
        scale = model.logit_scale[...]
        return scale * (
            (v * jax.random.normal(keys[0], v.shape)).sum()
            + (t * jax.random.normal(keys[1], t.shape)).sum()
        )

    grads = flat_names(jax.jit(jax.grad(loss))(part.trainable))
    dead = [path for path, g in grads.items() if not np.abs(g).max() > 0]
    assert [path for path in dead if not WITHOUT_GRADIENT.fullmatch(path)] == []
    total = sum(x.size for x in jax.tree.leaves(nnx.state(tiny.clip(name))))
    assert count(part.trainable) + count(part.frozen) == total


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("depths", [(4, 2), (2, 4), (3, 3)])
def test_freshly_attached_stays_at_or_near_the_frozen_model(name, depths):
    part = tiny.split(name, vision_layers=depths[0], text_layers=depths[1])
    plain = of_the_bare_model(*depths)
    for ours, reference in zip(features(part, tiny.batch()), plain, strict=True):
        error = np.abs(ours - reference).max() / np.abs(reference).max()
        towers, bound = NEAR.get(name, ((), 0))
        near = ("vision" if ours.ndim == 3 else "text") in towers
        assert 0 < error <= bound if near else error <= 1e-6, f"{name}: see NEAR"


@pytest.mark.parametrize("name", ADDING)
def test_what_a_method_adds_is_float32_of_its_own_type(name):
    added = nnx.state(tiny.clip(name, dtype="bfloat16"), AdapterParam)
    bare = nnx.state(tiny.clip())
    everything = nnx.state(tiny.clip(name))
    assert count(nnx.to_pure_dict(everything)) - count(nnx.to_pure_dict(bare)) == count(
        nnx.to_pure_dict(added)
    )
    assert {x.dtype for x in jax.tree.leaves(added)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ADDING)
def test_attaching_twice_raises(name):
    model = tiny.clip(name)
    options = ConfigDict(dict(METHODS[name].options))
    with pytest.raises(UserError, match="already holds"):
        get_method(name).attach(model, options, np.random.default_rng(0))


def test_counts_of_the_paper():
    config = CLIPConfig.from_huggingface({})  # transformers' defaults are ViT-B/32
    method = get_method("cross_modal_adapter")

    def build(shared_dim=16, bottleneck=8):
        model = CLIP(config, rng=None)
        options = {**method.options, "shared_dim": shared_dim, "bottleneck": bottleneck}
        method.attach(model, ConfigDict(options), None)
        return model

    _, trainable, frozen = nnx.split(nnx.eval_shape(build), AdapterParam, ...)
    assert count(trainable) == 519_168
    assert count(trainable) + count(frozen) == 151_796_481
    assert f"{100 * 519_168 / 151_796_481:.3f}" == "0.342"
    parts = nnx.to_pure_dict(trainable)
    assert [count(parts[k]) for k in ("vision", "text", "adapters")] == [310_080, 205_632, 3_456]


@pytest.mark.parametrize("shared_dim", [0, 8, 32])
def test_cross_modal_adapter_is_its_formula(shared_dim):
    r, s, d = 8, 5, 32
    model = tiny.clip("cross_modal_adapter", options={"shared_dim": shared_dim})
    adapter = model.text.blocks.after_attn
    first = jax.tree.map(lambda x: x[1], nnx.state(adapter))
    one = nnx.merge(nnx.graphdef(adapter), first)
    shared = model.adapters and model.adapters.layer_slices("text", 2)
    shared = shared and jax.tree.map(lambda x: x[1], shared)
    z = np.asarray(jax.random.normal(jax.random.key(3), (1, s, d)))
    out = one(jnp.asarray(z), jnp.zeros((1, s, d)), scan.LayerInputs(shared))
    a = z @ np.asarray(adapter.down_kernel[...][1])
    a = a / (1 + np.exp(-1.702 * a))
    assert a.shape[-1] == r
    pieces = []
    if shared_dim < d:
        pieces.append(a @ np.asarray(adapter.up_kernel[...][1]))
    if shared_dim:
        pieces.append(a @ np.asarray(model.adapters.attn_kernel[...][1]))
    np.testing.assert_allclose(out, z + np.concatenate(pieces, -1), rtol=1e-5, atol=1e-6)
    assert (adapter.up_kernel is None) == (shared_dim == d)


def test_the_shared_slice_is_one_parameter_with_two_users():
    part = tiny.split("cross_modal_adapter")
    batch = tiny.batch()
    moved = jax.tree.map(lambda x: x, part.trainable)
    moved["adapters"]["mlp_kernel"] = moved["adapters"]["mlp_kernel"] + 0.1
    for before, after in zip(features(part, batch), features(part, batch, moved), strict=True):
        assert np.abs(before - after).max() > 1e-4


@pytest.mark.parametrize(
    "count_, slots, expected",
    [
        (4, 2, [0, 0, 1, 1]),
        (24, 12, [i // 2 for i in range(24)]),
        (3, 3, [0, 1, 2]),
        (2, 4, [0, 1]),
        (5, 3, [0, 0, 1, 1, 2]),
    ],
)
def test_slots_of_towers_of_different_depth(count_, slots, expected):
    assert slot_of_layer(count_, slots).tolist() == expected


@pytest.mark.parametrize(
    "options, said", [({"shared_dim": 33}, "0..32"), ({"bottleneck": 0}, "bottleneck")]
)
def test_shapes_that_clash_are_named(options, said):
    with pytest.raises(UserError, match=said):
        tiny.clip("cross_modal_adapter", options=options)


def test_lora_equals_the_updated_matrix():
    model = tiny.clip("lora", options={"alpha": 16.0})
    place = model.vision.blocks.attn.q.delta
    place.b_kernel[...] = jax.random.normal(jax.random.key(9), place.b_kernel[...].shape)
    frames = tiny.batch()["frames"]
    adapted = model.encode_frames(frames)
    update = 2.0 * jnp.einsum("zir,zro->zio", place.a_kernel[...], place.b_kernel[...])
    merged = tiny.clip()
    merged.vision.blocks.attn.q.kernel[...] = merged.vision.blocks.attn.q.kernel[...] + update
    np.testing.assert_allclose(adapted, merged.encode_frames(frames), rtol=1e-4, atol=1e-4)
    assert np.abs(adapted - tiny.clip().encode_frames(frames)).max() > 1e-2


def test_lora_targets_match_whole_segments_and_must_match():
    model = tiny.clip("lora", options={"targets": ("text.blocks.mlp.fc1", "projection")})
    placed = [p for p, m in nnx.iter_graph(model) if isinstance(m, Linear) and m.delta is not None]
    assert sorted(".".join(p) for p in placed) == [
        "text.blocks.mlp.fc1",
        "text.projection",
        "vision.projection",
    ]
    with pytest.raises(UserError, match=r"'c1'.*attn\.q"):
        tiny.clip("lora", options={"targets": ("c1",)})


def test_dropout_of_a_method_acts_only_with_a_key():
    model = tiny.clip("cross_modal_adapter", options={"dropout": 0.5})
    frames = tiny.batch()["frames"]
    plain = model.encode_frames(frames)
    assert (plain == model.encode_frames(frames)).all()
    dropped = model.encode_frames(frames, key=jax.random.key(0))
    assert (dropped != plain).any()
    assert (dropped == model.encode_frames(frames, key=jax.random.key(0))).all()
    assert (dropped != model.encode_frames(frames, key=jax.random.key(1))).any()


def test_unknown_method_lists_the_known():
    with pytest.raises(UserError, match="cross_modal_adapter"):
        get_method("adaptor")


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_uniadapter_is_its_formula(tower):
    """.1 (U relu(D LN(x) + b) + u) in float64, of one layer with random weights."""
    model = tiny.clip("uniadapter")  # vision: 4 layers of 48; text: 2 of 32
    rng = np.random.default_rng(0)
    everything = nnx.state(model, AdapterParam)
    nnx.update(
        model,
        jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), everything),
    )
    branch = getattr(model, tower).blocks.beside_mlp
    layer, width = (3, 48) if tower == "vision" else (1, 32)
    one = jax.tree.map(lambda x: x[layer], nnx.state(branch))
    shared = model.adapters.layer_slices(tower, 4 if tower == "vision" else 2)
    shared = jax.tree.map(lambda x: x[layer], shared)
    x = rng.standard_normal((2, 5, width))
    found = nnx.merge(nnx.graphdef(branch), one)(
        jnp.zeros(x.shape), jnp.asarray(x, jnp.float32), scan.LayerInputs(shared)
    )

    def wide(name):
        both = [shared[name]] + ([one["rows"][name][...]] if tower == "vision" else [])
        return np.concatenate(both).astype(np.float64)

    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    down = (normal * wide("scale") + wide("bias")) @ wide("kernel") + np.asarray(
        shared["down_bias"]
    )
    up = np.maximum(down, 0) @ np.asarray(one["up_kernel"][...], np.float64)
    wanted = 0.1 * (up + np.asarray(one["up_bias"][...]))
    np.testing.assert_allclose(found, wanted, atol=2e-6 * np.abs(wanted).max())


def test_uniadapter_shares_the_down_projection():
    model = tiny.clip("uniadapter")
    assert model.text.blocks.beside_mlp.rows is None  # the narrower tower has none of its own
    assert model.vision.blocks.beside_mlp.rows.kernel[...].shape == (4, 16, 8)
    both = [model.adapters.layer_slices(tower, 2)["kernel"] for tower in ("vision", "text")]
    np.testing.assert_array_equal(*both)
    assert both[0].shape == (2, 32, 8)


def test_uniadapter_can_start_as_the_frozen_model_and_train_the_projections():
    batch = tiny.batch()
    part = tiny.split("uniadapter", options={"init": "identity", "train_projections": True})
    bare = tiny.split("zero_shot")
    for ours, reference in zip(features(part, batch), features(bare, batch), strict=True):
        np.testing.assert_array_equal(ours, reference)
    named = flat_names(part.trainable)
    assert {"vision.projection.kernel", "text.projection.kernel"} < set(named)
    assert "vision.projection.kernel" not in flat_names(tiny.split("uniadapter").trainable)
    with pytest.raises(UserError, match="choose one of paper, identity"):
        tiny.split("uniadapter", options={"init": "zero"})
