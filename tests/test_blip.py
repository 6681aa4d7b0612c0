"""BLIP's config, heads, pictures and parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from uniadapter_jax.adapters.partition import flat_names, partition
from uniadapter_jax.backbones import functions
from uniadapter_jax.backbones.blip import BLIP
from uniadapter_jax.backbones.blip_config import ANSWERING, MATCHING, BLIPConfig
from uniadapter_jax.backbones.memory import Memory
from uniadapter_jax.backbones.pixels import normalize_pixels
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import generator


def pictures(count=2):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 256, (count, 32, 32, 3)), jnp.uint8)


def test_config_round_trip_and_transformers_defaults():
    for parts in ([MATCHING], [ANSWERING], [MATCHING, ANSWERING]):
        config = BLIPConfig.from_huggingface(tiny.blip_config(parts))
        assert BLIPConfig.from_huggingface(config.to_huggingface()) == config
        assert (config.matching, config.decoder) == (MATCHING in parts, ANSWERING in parts)
    default = BLIPConfig.from_huggingface({})
    assert (default.vision.width, default.text.width, default.patches) == (768, 768, 576)
    assert (default.text.heads, default.vision.eps, default.text.eps) == (8, 1e-5, 1e-12)
    assert (default.dec_id, default.enc_id, default.sep_id, default.pad_id) == (
        30522,
        30523,
        102,
        0,
    )
    assert default.matching and not default.decoder and default.embed == 256
    assert default.text_std == 0.02
    other = {**tiny.blip_config(), "text_config": {"vocab_size": 90, "bos_token_id": 7}}
    other["text_config"] |= {"enc_token_id": 9, "sep_token_id": 4, "initializer_range": 0.5}
    read = BLIPConfig.from_huggingface(other)
    assert (read.enc_id, read.text_std) == (9, 0.5)
    assert BLIPConfig.from_huggingface(read.to_huggingface()) == read


@pytest.mark.parametrize(
    "change, said",
    [
        ({"architectures": ["BlipForConditionalGeneration"]}, "BlipForConditionalGeneration"),
        ({"architectures": "BlipModel"}, "BlipModel"),
        ({"text_config": {"bos_token_id": 40000}}, "bos_token_id=40000"),
        ({"text_config": {"pad_token_id": -1}}, "pad_token_id=-1"),
        ({"text_config": {"enc_token_id": "x"}}, "enc_token_id='x'"),
        ({"text_config": {"num_attention_heads": 5}}, "5 heads"),
        ({"vision_config": {"patch_size": 7}}, "patch_size=7"),
        ({"vision_config": {"hidden_act": "relu"}}, "relu"),
        ({"image_text_hidden_size": 0}, "image_text_hidden_size=0"),
    ],
)
def test_configs_that_make_no_sense_are_refused(change, said):
    with pytest.raises(UserError, match=said):
        BLIPConfig.from_huggingface(change)


def test_uint8_is_normalised_and_floats_are_taken_as_they_are():
    model, pixels = tiny.blip(), pictures()
    encode = jax.jit(model.encode_images)
    states = encode(pixels)
    assert states.shape == (2, 1 + 16, 24)
    np.testing.assert_allclose(states, encode(normalize_pixels(pixels)), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="32x32"):
        model.encode_images(pixels[:, :16, :16])


def test_features_are_unit_vectors_and_float32():
    model = tiny.blip(dtype="bfloat16")
    rng = np.random.default_rng(0)
    cls, words = (jnp.asarray(rng.random(s), jnp.bfloat16) for s in ((2, 24), (3, 32)))
    for features, shape in ((model.image_features(cls), 2), (model.text_features(words), 3)):
        assert features.shape == (shape, 16) and features.dtype == jnp.float32
        np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1, rtol=1e-6)
    assert model.match_logits(words).dtype == jnp.float32
    frames = jnp.stack([cls, cls], 1)
    assert model.image_features(frames).shape == (2, 2, 16)


def test_fusion_ids_begin_with_enc():
    ids = jnp.array([[[2, 7, 5], [2, 8, 5]]])
    assert tiny.blip().fusion_ids(ids).tolist() == [[[59, 7, 5], [59, 8, 5]]]


def test_parts_that_are_not_there():
    ids = jnp.ones((1, 1, 3), jnp.int32)
    matching, answering = tiny.blip(parts=[MATCHING]), tiny.blip(parts=[ANSWERING])
    states = jnp.ones((1, 3, 32))
    with pytest.raises(UserError, match="no decoder"):
        matching.decode(ids, None, Memory(states))
    for head in (answering.text_features, answering.match_logits):
        with pytest.raises(UserError, match="no heads"):
            head(states[:, 0])
    with pytest.raises(UserError, match="no heads"):
        answering.image_features(jnp.ones((1, 24)))


def test_stochastic_depth_needs_a_key_and_spares_the_first_layer():
    model, without = tiny.blip(drop_path=0.6), tiny.blip()
    pixels, key = pictures(), jax.random.key(3)
    plain = without.encode_images(pixels)
    np.testing.assert_array_equal(without.encode_images(pixels, key=key), plain)
    assert np.abs(model.encode_images(pixels, key=key) - plain).max() > 1e-2
    x = jnp.ones((4000, 1, 2))
    dropped = functions.drop_path(x, jnp.float32(0.25), key)
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    assert (dropped[:, 0, 0] == dropped[:, 0, 1]).all() and abs(dropped.mean() - 1) < 0.05
    assert (functions.drop_path(x, jnp.float32(0.0), key) == x).all()


def test_places_of_the_vision_blocks_and_slices_of_a_method():
    """Every tower gets its slices by name, one for each layer."""
    model, bare = tiny.blip(), tiny.blip()
    asked = []

    class Shares(nnx.Module):
        def layer_slices(self, tower, count):
            asked.append((tower, count))
            return jnp.arange(1.0, count + 1)

    class Slice(nnx.Module):
        def __call__(self, y, x, layer):
            return y + x * layer.shared

    model.adapters = Shares()
    model.vision.blocks.beside_mlp = Slice()
    model.text.blocks.beside_text = Slice()
    ids = jnp.ones((1, 1, 3), jnp.int32)
    jax.eval_shape(model.fuse, ids, None, Memory(jnp.ones((1, 4, 24))))
    jax.eval_shape(model.decode, ids, None, Memory(jnp.ones((1, 4, 32))))
    for encode in ("encode_text", "encode_images"):
        given = (ids[0], None) if encode == "encode_text" else (pictures(),)
        assert np.abs(getattr(model, encode)(*given) - getattr(bare, encode)(*given)).max() > 0.1
    assert asked == [("text", 2), ("decoder", 2), ("text", 2), ("vision", 3)]


def test_norms_and_the_temperature_stay_float32():
    frozen = flat_names(partition(tiny.blip(), None, "bfloat16").frozen)
    wide = {name for name, value in frozen.items() if value.dtype == jnp.float32}
    assert wide == {name for name in frozen if ".ln" in name or name == "temp"}
    assert {
        "text.blocks.cross.ln.scale",
        "decoder_head.ln_head.bias",
        "vision.ln_post.scale",
    } < wide


def test_random_weights_of_texts_have_the_spread_of_the_config():
    """Which is no part of the function, so two such backbones with one file's weights are one."""
    narrow, wide = (
        BLIPConfig.from_huggingface(
            tiny.blip_config(initializer_range=std) if std else tiny.blip_config()
        )
        for std in (None, 0.1)
    )
    assert narrow.function() == wide.function()
    states = [
        flat_names(nnx.to_pure_dict(nnx.state(BLIP(c, rng=generator(0, "backbone")))))
        for c in (narrow, wide)
    ]
    grown = {
        name.split(".")[0]
        for name, value in states[0].items()
        if np.abs(value - states[1][name]).max() > 0
    }
    assert grown == {"text", "decoder", "decoder_head"}
    np.testing.assert_allclose(
        states[1]["text.blocks.cross.v.kernel"],
        5 * states[0]["text.blocks.cross.v.kernel"],
        rtol=1e-5,
    )
