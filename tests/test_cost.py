"""Methods that let no gradient into the backbone pay for no backward pass of it."""

import jax
import jax.numpy as jnp
import pytest
import tiny
from flax import nnx
from test_from_layer import forward_flops, gradient_flops
from test_methods import attached

from uniadapter_jax.adapters.partition import partition
from uniadapter_jax.backbones.layers import States
from uniadapter_jax.planning.flops import count_flops

PICTURES = TEXTS = 2  # of `gradient_flops`
EMBED = 24


def of_projection(model):
    """The gradient of both kernels; their forward pass is the backbone's."""
    return 2 * EMBED * (PICTURES * 48 + TEXTS * 32)


def of_clip_adapter(model):
    """Two products forward, two gradients of kernels, and one of what is between them."""
    return 5 * 2 * PICTURES * EMBED * (EMBED // 4)


def of_unipt(model):
    """Both networks on states that are given."""
    return sum(
        flops_of_side(tower.side, rows, states)
        for tower, rows, states in (
            (model.vision, PICTURES, (5, PICTURES, 17, 48)),
            (model.text, TEXTS, (3, TEXTS, 6, 32)),
        )
    )


def flops_of_side(side, rows, shape):
    graphdef, state = nnx.split(side)

    def loss(state, features, layers):
        states = States(layers, None, lambda x: x[:, 0])
        return nnx.merge(graphdef, state)(features, states).sum()

    given = (jax.ShapeDtypeStruct(size, jnp.float32) for size in ((rows, EMBED), shape))
    return count_flops(jax.jit(jax.value_and_grad(loss)).trace(state, *given).jaxpr)


OWN = {"projection": of_projection, "clip_adapter": of_clip_adapter, "unipt": of_unipt}


@pytest.mark.parametrize("name", OWN)
def test_a_step_is_forward_and_the_methods_own(name):
    model = tiny.clip()
    part = attached(model, name)
    expected = forward_flops(partition(tiny.clip(), None)) + OWN[name](model)
    assert gradient_flops(part) == pytest.approx(expected, rel=0.03)
