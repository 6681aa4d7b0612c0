"""Methods that begin at a layer: nothing below trains, gets a gradient, or computes otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import siglip_case
import tiny
from flax import nnx
from ml_collections import ConfigDict
from test_methods import NOT_FOR_BLIP, both_features, noisy
from test_siglip import NOT_FOR_SIGLIP

from uniadapter_jax.adapters.partition import flat_names, partition
from uniadapter_jax.adapters.registry import METHODS, get_method
from uniadapter_jax.backbones.memory import Memory
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.parallel.sharding import axes_of
from uniadapter_jax.planning.flops import count_flops

LAYERED = sorted(name for name, method in METHODS.items() if method.layered)
BACKBONES = {"clip": tiny.clip, "blip": tiny.blip, "siglip": siglip_case.siglip}
NOT_FOR = {"blip": NOT_FOR_BLIP, "siglip": NOT_FOR_SIGLIP}
AHEAD = ("patch_embedding", "class_embedding", "ln_pre", "ln_embed", "token_embedding", "below")


def shares(fast):
    """All of them, those in `fast` in the fast suite."""
    slow = pytest.mark.slow
    return [pytest.param(name, marks=() if name in fast else slow) for name in LAYERED]


def attached(model, name, at):
    method = get_method(name)
    options = ConfigDict({**method.options, "from_layer": at})
    method.attach(model, options, generator(0, "adapters"))
    return partition(model, method.filter(options))


def of_depth(depth):
    return tiny.clip(vision_layers=depth, text_layers=depth)


@pytest.mark.parametrize("name", shares(("lora", "bitfit", "uniadapter")))
def test_nothing_below_trains_in_any_family(name):
    for family, make in BACKBONES.items():
        if name in NOT_FOR.get(family, ()):
            continue
        part = attached(make(), name, 1)
        trained, frozen = flat_names(part.trainable), flat_names(part.frozen)
        assert not [path for path in trained for word in AHEAD if word in path.split(".")]
        assert [path for path in frozen if "below" in path.split(".")]
        for path in (*trained, *frozen):
            axes_of(path)  # every parameter has a rule of sharding


def gradient_flops(part):
    batch = tiny.batch(clips=2, frames=1)

    def loss(trainable):
        model = part.merge(trainable, part.frozen)
        return model.encode_frames(batch["frames"]).sum() + model.encode_text(batch["text"]).sum()

    return count_flops(jax.jit(jax.value_and_grad(loss)).trace(part.trainable).jaxpr)


def forward_flops(part):
    batch = tiny.batch(clips=2, frames=1)

    def features(frozen):
        model = part.merge({}, frozen)
        return model.encode_frames(batch["frames"]), model.encode_text(batch["text"])

    return count_flops(jax.jit(features).trace(part.frozen).jaxpr)


@pytest.mark.parametrize("name", shares(("lora",)))
def test_the_backward_pass_stops_there(name):
    """A cut tower costs what one of the layers above costs, and the layers below once forward."""
    bare = [forward_flops(partition(of_depth(depth), None)) for depth in (2, 4)]
    found = gradient_flops(attached(of_depth(4), name, 2))
    assert found == gradient_flops(attached(of_depth(2), name, 0)) + bare[1] - bare[0]


ONES = {"ssf": ("scale",), "cross_modal_adapter": (), "uniadapter": ()}  # else zeros


def silent(name, path, start):
    """A parameter's value that leaves the model as it was."""
    if name not in ONES:
        return start
    return jnp.full_like(start, path.rpartition(".")[2] in ONES[name])


# No weights of VPT's tokens stand for none, and of TempMe for layers that merge no tokens.
NEVER_SILENT = {("vpt_deep",), ("tempme",)}


@pytest.mark.parametrize("name", [p for p in shares(("ssf",)) if p.values not in NEVER_SILENT])
def test_the_features_are_those_of_the_uncut_model(name):
    """With the same weights above, and below such that nothing is added."""
    cut, whole = attached(of_depth(3), name, 1), attached(of_depth(3), name, 0)
    cut.trainable = noisy(cut.trainable)
    above = {k.replace(".above", ""): v for k, v in flat_names(cut.trainable).items()}
    values = []
    for path, start in flat_names(whole.trainable).items():
        value = silent(name, path, start)
        given = above.get(path, value)
        if given.shape != start.shape:
            given = jnp.concatenate([value[:1], given])
        values.append(given)
    tree = jax.tree.unflatten(jax.tree.structure(whole.trainable), values)
    wanted = both_features(whole.merge(tree, whole.frozen))
    model = cut.merge(cut.trainable, cut.frozen)
    found = both_features(model)
    for ours, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    if (merge := get_method(name).merge) is None:
        return
    merge(model)
    plain = nnx.to_pure_dict(nnx.state(of_depth(3)))
    assert set(flat_names(nnx.to_pure_dict(nnx.state(model)))) == set(flat_names(plain))
    assert {type(p) for p in jax.tree.leaves(nnx.state(model), is_leaf=is_param)} == {nnx.Param}
    for ours, expected in zip(both_features(model), wanted, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def is_param(value):
    return isinstance(value, nnx.Variable)


def test_keys_and_values_below_are_the_backbones():
    """UniAdapter adds to those of BLIP's cross-attention in every layer; not below the first."""
    bare, model = tiny.blip(), tiny.blip()
    attached(model, "uniadapter", 1)
    states = jnp.ones((1, 3, 24))
    plain, adapted = (m.text.attend_to(Memory(states)).made.keys for m in (bare, model))
    np.testing.assert_array_equal(plain[0], adapted[0])
    assert np.abs(plain[1] - adapted[1]).max() > 1e-6


def test_a_layer_that_a_tower_does_not_have_is_refused():
    with pytest.raises(UserError, match=r"method\.from_layer=2: the text tower has 2 layers"):
        attached(tiny.clip(), "lora", 2)
