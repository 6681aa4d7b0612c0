"""Merged tokens against golden features, counts of tokens, gradients, and what is refused."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import siglip_case
import tiny
from ml_collections import ConfigDict

from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.backbones import merging
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.config import base_config
from uniadapter_jax.inference.clip_options import clip_options, kept_of_run
from uniadapter_jax.inference.load import load_model
from uniadapter_jax.runs.preflight import check_room
from uniadapter_jax.weights.directory import load_backbone

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    "merged", [2, *(pytest.param(r, marks=pytest.mark.slow) for r in (1, 3, 9))]
)
def test_features_equal_the_golden_ones(merged):
    model = load_backbone(str(GOLDEN / "clip" / "quick_gelu"), merge=merged).model
    pixels = jnp.asarray(np.load(GOLDEN / "clip" / "features.npz")["pixels"])
    wanted = np.load(GOLDEN / "tome.npz")[f"{merged}.image"]
    np.testing.assert_allclose(jax.jit(model.encode_images)(pixels), wanted, rtol=1e-4, atol=1e-5)


def tokens(count, width=6, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, count, width)).astype(np.float32)
    return merging.Tokens(jnp.asarray(x), jnp.asarray(rng.integers(1, 4, (2, count)), jnp.float32))


def test_means_are_by_size_and_nothing_is_lost():
    given = tokens(9)
    keys = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 9, 4)), jnp.float32)
    x, size = merging.Merging(2, given.size)(given.x, keys)
    assert x.shape == (2, 7, 6)
    np.testing.assert_allclose(size.sum(1), given.size.sum(1))
    np.testing.assert_allclose(
        (x * size[..., None]).sum(1), (given.x * given.size[..., None]).sum(1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(x[:, 0], given.x[:, 0], rtol=1e-6)  # the class token


def test_the_most_alike_merge_and_at_most_half_do():
    keys = jnp.asarray(np.random.default_rng(1).normal(size=(2, 1, 7, 4)), jnp.float32)
    keys = keys.at[:, :, 4].set(2 * keys[:, :, 1])  # of A; 1 is of B
    given = tokens(7)._replace(size=jnp.ones((2, 7)))
    x, size = merging.Merging(1, given.size)(given.x, keys)
    assert size.tolist() == [[1, 1, 1, 2, 1, 1]] * 2  # 0 2 6, then 1 3 5
    np.testing.assert_allclose(x[:, 3], (given.x[:, 1] + given.x[:, 4]) / 2, rtol=1e-5)
    assert merging.Merging(99, given.size)(given.x, keys)[0].shape[1] == 4


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cross_modal_adapter", "vpt_deep", "partial"])
def test_methods_act_on_what_is_left(method):
    """Every trainable of the vision tower gets a finite gradient, also above a cut."""
    part = tiny.split(method, vision_layers=3, merge=3)
    frames = tiny.batch(clips=1, frames=2)["frames"]

    def value(trainable):
        return (part.merge(trainable, part.frozen).encode_frames(frames) ** 2).sum()

    gradient = jax.jit(jax.grad(value))(part.trainable)
    leaves = jax.tree.leaves(gradient["vision"])
    assert leaves and all(np.isfinite(leaf).all() for leaf in leaves)
    assert any(np.abs(leaf).max() > 0 for leaf in leaves)


def test_a_loaded_model_merges_as_its_adapter_was_trained_or_as_it_is_told():
    backbone = str(GOLDEN / "clip" / "quick_gelu")
    pixels = np.load(GOLDEN / "clip" / "features.npz")["pixels"]
    told = load_model(backbone, merge=2)
    wanted = np.load(GOLDEN / "tome.npz")["2.image"]
    np.testing.assert_allclose(told.encode_frames(pixels), wanted, rtol=1e-4, atol=1e-5)
    assert (
        told.clips.to_json()["merge"] == 2 and "merge" not in load_model(backbone).clips.to_json()
    )
    run = {"compute": {"merge": 3}, "data": {"records": "", "frames": 12, "sampling": "evenly"}}
    kept = kept_of_run(run)
    assert clip_options(kept, "the adapter", 15).merge == kept["merge"] == 3


def refused(model, method="lora", **data):
    config = base_config(method)
    config.compute.merge = 4
    config.data.update(data)
    get_method(method).attach(model, ConfigDict(config.method), generator(0, "adapters"))
    with pytest.raises(UserError) as caught:
        check_room(config, model)
    return str(caught.value)


def test_where_all_tokens_are_needed_it_is_refused():
    assert "config.compute.merge=4: SigLIP reads all tokens" in refused(siglip_case.siglip())
    assert "method 'unipt' adds rows" in refused(tiny.clip(), "unipt")
    assert "method 'vl_prompt' adds rows" in refused(tiny.clip(), "vl_prompt")
