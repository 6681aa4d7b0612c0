"""CLIP's config, pooling rules and encoders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from uniadapter_jax.backbones import clip
from uniadapter_jax.backbones.pixels import PIXEL_MEAN, PIXEL_STD
from uniadapter_jax.common.errors import UserError


def test_config_round_trip_and_transformers_defaults():
    config = clip.CLIPConfig.from_huggingface(tiny.hf_config())
    assert clip.CLIPConfig.from_huggingface(config.to_huggingface()) == config
    default = clip.CLIPConfig.from_huggingface({})
    assert (default.vision.width, default.text.width, default.patches) == (768, 512, 49)
    assert default.eos_id == 49407 and default.vision.activation == "quick_gelu"


@pytest.mark.parametrize(
    "change, said",
    [
        ({"hidden_act": "swish"}, "swish"),
        ({"num_attention_heads": 5}, "5 heads"),
        ({"patch_size": 7}, "patch_size=7"),
    ],
)
def test_configs_that_make_no_sense_are_refused(change, said):
    with pytest.raises(UserError, match=said):
        clip.CLIPConfig.from_huggingface(tiny.hf_config(**change))


def test_eos_rules():
    ids = jnp.array([[50, 3, 99, 7, 99], [50, 99, 98, 0, 0]])
    assert clip.eos_position(ids, 99).tolist() == [2, 1]
    legacy = jnp.array([[50, 3, 97, 7, 0], [50, 98, 2, 0, 0]])
    assert clip.eos_position(legacy, 2).tolist() == [2, 1]


def test_ids_without_eos_or_outside_the_vocabulary_are_refused():
    config = tiny.clip().config
    good = np.array([[1, 2, 99, 0]])
    config.check_ids(good)
    for bad, said in (
        ([[1, 2, 3, 0]], "no EOS"),
        ([[1, 100, 99, 0]], "outside"),
        ([[1, -1, 99, 0]], "outside"),
    ):
        with pytest.raises(UserError, match=f"text 1.*{said}"):
            config.check_ids(np.array([good[0], bad[0]]))


def test_padding_and_later_words_do_not_matter():
    model = tiny.clip()
    encode = jax.jit(model.encode_text)
    short = jnp.array([[98, 5, 6, 99]])
    features = encode(short)
    padded = encode(jnp.array([[98, 5, 6, 99, 0, 0, 0]]))
    other = encode(jnp.array([[98, 5, 6, 99, 17, 4, 2]]))
    np.testing.assert_allclose(features, padded, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(features, other, rtol=1e-5, atol=1e-5)


def test_frames_are_encoded_alone_in_any_grouping():
    frames = tiny.batch(clips=2, frames=5)["frames"]
    whole = jax.jit(tiny.clip(frame_chunks=1).encode_frames)(frames)
    grouped = jax.jit(tiny.clip(frame_chunks=3).encode_frames)(frames)
    np.testing.assert_allclose(whole, grouped, rtol=1e-5, atol=1e-5)
    turned = jax.jit(tiny.clip().encode_frames)(frames[:, ::-1])
    np.testing.assert_allclose(whole, turned[:, ::-1], rtol=1e-5, atol=1e-5)


def test_uint8_is_normalised_and_floats_are_taken_as_they_are():
    model = tiny.clip()
    pixels = tiny.batch()["frames"][0]
    mean, std = np.array(PIXEL_MEAN), np.array(PIXEL_STD)
    by_hand = jnp.asarray((np.asarray(pixels) / 255.0 - mean) / std, jnp.float32)
    np.testing.assert_allclose(
        model.encode_images(pixels), model.encode_images(by_hand), rtol=1e-4, atol=1e-4
    )


def test_shapes_that_do_not_fit_say_so():
    model = tiny.clip()
    with pytest.raises(UserError, match="32x32"):
        model.encode_images(jnp.zeros((1, 16, 16, 3)))
    with pytest.raises(UserError, match="77 positions"):
        model.encode_text(jnp.zeros((1, 78), jnp.int32))
