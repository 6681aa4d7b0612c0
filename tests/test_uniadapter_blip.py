"""UniAdapter in BLIP: the released counts, its formulas in float64, and where it starts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from ml_collections import ConfigDict

from uniadapter_jax.adapters.partition import count, flat_names, partition
from uniadapter_jax.adapters.registry import AdapterParam
from uniadapter_jax.adapters.uniadapter_blip import attach
from uniadapter_jax.backbones import scan
from uniadapter_jax.backbones.blip import BLIP, MATCHING, BLIPConfig
from uniadapter_jax.backbones.memory import Memory

OPTIONS = {
    "bottleneck": 3,
    "init": "paper",
    "dropout": 0.0,
    "train_heads": True,
    "train_cross_norm": False,
    "key_value_bottleneck": 4,
    "share_down": True,
    "query_residual": True,
}


def adapted(parts=None, noise=0.0, **options):
    """A tiny BLIP (vision 3 x 24, text 2 x 32) with the method; all its parameters made noisy."""
    model = tiny.blip() if parts is None else tiny.blip(parts=parts)
    attach(model, ConfigDict({**OPTIONS, **options}), np.random.default_rng(1))
    if noise:
        rng = np.random.default_rng(2)
        state = nnx.state(model)
        added = {k: v for k, v in nnx.to_flat_state(state) if _is_ours(k)}
        for path, variable in added.items():
            value = variable[...] + noise * rng.standard_normal(variable[...].shape)
            added[path] = variable.replace(jnp.asarray(value, jnp.float32))
        nnx.update(model, nnx.from_flat_state(added))
    return model


def _is_ours(path):
    return "adapters" in path or any(str(part).startswith(("beside", "cross_")) for part in path)


@pytest.mark.parametrize(
    ("bottleneck", "adapters", "released"),
    [(128, 4_784_640, 5_359_748), (512, 18_945_024, 19_520_132)],
)
def test_counts_as_released(bottleneck, adapters, released):
    def build(cross_norm):
        model = BLIP(BLIPConfig.from_huggingface({}), rng=None)
        options = {**OPTIONS, "bottleneck": bottleneck, "key_value_bottleneck": 64}
        attach(model, ConfigDict({**options, "train_cross_norm": cross_norm}), _Zeros())
        return model

    for cross_norm in (False, True):
        model = nnx.eval_shape(lambda cross_norm=cross_norm: build(cross_norm))
        trained = nnx.to_pure_dict(nnx.state(model, AdapterParam))
        assert count(trained) == released + 18_432 * cross_norm
    everything = flat_names(nnx.to_pure_dict(nnx.state(model)))
    ours = [x for name, x in everything.items() if name.startswith("adapters") or "beside" in name]
    assert sum(x.size for x in ours) == adapters


class _Zeros:
    """A generator for shapes: nothing is drawn."""

    def standard_normal(self, shape, dtype):
        return np.broadcast_to(np.zeros((), dtype), shape)

    random = standard_normal


def wide(x):
    return np.asarray(x, np.float64)


def down(x, shared):
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    normal = normal * wide(shared["scale"]) + wide(shared["bias"])
    return np.maximum(normal @ wide(shared["kernel"]) + wide(shared["down_bias"]), 0)


def test_text_and_fusion_are_their_formulas():
    model = adapted(noise=0.5)
    slices = model.adapters.layer_slices("text", 2)
    shared = jax.tree.map(lambda x: x[1], slices)
    x = np.random.default_rng(0).standard_normal((2, 5, 32))
    inputs = jnp.zeros(x.shape), jnp.asarray(x, jnp.float32), scan.LayerInputs(shared)
    text = wide(shared["text_bias"]) + down(x, shared) @ wide(shared["text_kernel"])
    found = model.text.blocks.beside_text(*inputs)
    np.testing.assert_allclose(found, 0.1 * text, atol=1e-5)

    both = text + wide(shared["cross_bias"]) + down(x, shared) @ wide(shared["cross_kernel"])
    normal = (both - both.mean(-1, keepdims=True)) / np.sqrt(both.var(-1, keepdims=True) + 1e-5)
    wanted = 0.1 * (normal * wide(shared["ln_cross_scale"]) + wide(shared["ln_cross_bias"]))
    np.testing.assert_allclose(model.text.blocks.beside_fusion(*inputs), wanted, atol=1e-5)


def test_keys_and_values_are_their_formula():
    adapter = adapted(noise=0.5).text.cross_key
    x = np.random.default_rng(0).standard_normal((2, 5, 24))
    low = x @ wide(adapter.down_kernel[...]) + wide(adapter.down_bias[...])
    up = low @ wide(adapter.up_kernel[...]) + wide(adapter.up_bias[...])
    found = adapter(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, wide(adapter.scale[...]) * up, atol=1e-5)


def outputs(model):
    """All that a BLIP computes for two pictures and two texts each."""
    rng = np.random.default_rng(0)
    pixels = jnp.asarray(rng.integers(0, 256, (2, 32, 32, 3)), jnp.uint8)
    ids = jnp.asarray(rng.integers(1, 58, (4, 6)), jnp.int32)
    mask = jnp.asarray(np.arange(6) < np.array([[6], [4], [5], [6]]))

    @jax.jit
    def run():
        states, words = model.encode_images(pixels), model.encode_text(ids, mask)
        grouped = model.fusion_ids(ids).reshape(2, 2, 6), mask.reshape(2, 2, 6)
        fused = model.fuse(*grouped, Memory(states))
        question = Memory(fused.reshape(4, 6, -1), mask)
        answers = model.decode(ids[:, None], mask[:, None], question)
        features = model.image_features(states[:, 0]), model.text_features(words[:, 0])
        return states, words, fused, answers, *features, model.match_logits(fused[:, :, 0])

    return run()


def added(model):
    """{place: what the method adds there for random inputs}, of layer 1."""
    rng = np.random.default_rng(0)
    x = {width: jnp.asarray(rng.standard_normal((2, 5, width)), jnp.float32) for width in (24, 32)}

    def layer(tower, count):
        slices = model.adapters.layer_slices(tower, count)
        return scan.LayerInputs(jax.tree.map(lambda leaf: leaf[1], slices))

    vision = model.vision.blocks.beside_mlp
    one = nnx.merge(nnx.graphdef(vision), jax.tree.map(lambda leaf: leaf[1], nnx.state(vision)))
    found = {"vision": one(0 * x[24], x[24], layer("vision", 3))}
    for name, tower in (("text", model.text), ("decoder", model.decoder)):
        inputs = 0 * x[32], x[32], layer(name, 2)
        found[f"{name}.text"] = tower.blocks.beside_text(*inputs)
        found[f"{name}.fusion"] = tower.blocks.beside_fusion(*inputs)
        attended = x[24 if name == "text" else 32]
        found[f"{name}.key"] = tower.cross_key(attended)
        found[f"{name}.value"] = tower.cross_value(attended)
    return found


def test_identity_starts_as_the_frozen_model_and_paper_does_not():
    for place, value in added(adapted(init="identity")).items():
        assert not np.any(value), place
    # Exactly zero is added; two programs may still round what they share in other orders.
    bare = outputs(tiny.blip())
    for found, wanted in zip(outputs(adapted(init="identity")), bare, strict=True):
        assert np.abs(found - wanted).max() < 2e-6 * np.abs(wanted).max()
    zero = {place for place, value in added(adapted()).items() if not np.any(value)}
    assert zero == {"text.text", "decoder.text"}  # U_t
    states, _, fused, *_ = outputs(adapted())
    assert np.abs(states - bare[0]).max() > 1e-4  # U_v is random
    assert np.abs(fused - bare[2]).max() > 1e-2  # LN_x makes a small U_m large


def test_every_part_has_a_gradient_and_the_rest_stays_frozen():
    model = adapted(noise=0.1)
    part = partition(model, AdapterParam)

    def loss(trainable):
        rng = np.random.default_rng(3)
        found = outputs(part.merge(trainable, part.frozen))
        return sum((x * jnp.asarray(rng.standard_normal(x.shape), x.dtype)).sum() for x in found)

    grads = flat_names(jax.jit(jax.grad(loss))(part.trainable))
    # A constant on all keys cancels in the softmax.
    blind = {f"{t}.cross_key.{b}_bias" for t in ("text", "decoder") for b in ("down", "up")}
    dead = {name for name, g in grads.items() if not np.abs(g).max() > 1e-6}
    assert dead <= blind
    heads = {name for name in grads if name.startswith(("vision_proj", "text_proj", "itm_head"))}
    assert len(heads) == 6
    assert not any("ln_cross" in name for name in grads)
    assert any("ln_cross" in name for name in flat_names(part.frozen))


def test_a_blip_without_decoder_and_frozen_heads():
    model = adapted(parts=(MATCHING,), train_heads=False, train_cross_norm=True)
    names = set(flat_names(nnx.to_pure_dict(nnx.state(model, AdapterParam))))
    assert not any(name.startswith(("decoder", "itm_head", "text_proj")) for name in names)
    assert {"adapters.ln_cross_scale", "text.cross_value.scale"} < names


def test_separate_down_projections_that_are_equal_compute_what_a_shared_one_does():
    together, apart = adapted(noise=0.3), adapted(noise=0.3, share_down=False)
    shared = flat_names(nnx.to_pure_dict(nnx.state(together)))
    own = flat_names(nnx.to_pure_dict(nnx.state(apart)))
    # LN, D and b of 3 vision layers of width 24, and of 2 fusion layers of width 32; vision reads
    # the first 24 rows of a shared one.
    added = 3 * (2 * 24 + 24 * 3 + 3) + 2 * (2 * 32 + 32 * 3 + 3)
    assert count(own) == count(shared) + added
    slices = {
        tower: together.adapters.layer_slices(tower, n) for tower, n in (("text", 2), ("vision", 3))
    }
    own |= {name: x for name, x in shared.items() if ".rows." not in name}
    for place, tower in (("", "text"), ("fusion_down.", "text"), ("vision_down.", "vision")):
        down = slices[tower]
        own[f"adapters.{place}down_bias"] = down["down_bias"]
        own |= {f"adapters.{place}rows.{k}": down[k] for k in ("kernel", "scale", "bias")}
    state = nnx.to_flat_state(nnx.state(apart))
    equal = {path: v.replace(own[".".join(map(str, path))]) for path, v in state}
    nnx.update(apart, nnx.from_flat_state(equal))
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, outputs(apart), outputs(together))


def test_without_the_query_residual_fusion_alone_changes():
    wanted, found = outputs(adapted(noise=0.3)), outputs(adapted(noise=0.3, query_residual=False))
    (states, words, fused, answers, *_), (_, _, fused_too, answers_too, *_) = wanted, found
    np.testing.assert_allclose(found[0], states, atol=1e-5)
    np.testing.assert_allclose(found[1], words, atol=1e-5)
    assert np.abs(fused_too - fused).max() > 0.01 and np.abs(answers_too - answers).max() > 0.01
