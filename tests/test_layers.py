"""The layers against plain formulas: values, gradients, remat, stacking."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from uniadapter_jax.backbones import functions, layers, scan
from uniadapter_jax.backbones.attention import mask_bias
from uniadapter_jax.backbones.huggingface_config import TowerConfig


def plain_layer_norm(x, scale, bias, eps):
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    along = functions.along_last
    return (x - mean) / jnp.sqrt(var + eps) * along(scale, x) + along(bias, x)


def test_layer_norm_and_its_gradients_equal_autodiff():
    keys = jax.random.split(jax.random.key(0), 4)
    x = 3 + 2 * jax.random.normal(keys[0], (2, 5, 16))
    scale, bias = jax.random.normal(keys[1], (16,)), jax.random.normal(keys[2], (16,))
    weigh = jax.random.normal(keys[3], x.shape)

    def both(function):
        def total(x, scale, bias):
            return (function(x, scale, bias, 1e-5) * weigh).sum()

        return jax.value_and_grad(total, argnums=(0, 1, 2))(x, scale, bias)

    ours, plain = both(functions.layer_norm), both(plain_layer_norm)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), ours, plain)


@pytest.mark.parametrize("name", ["quick_gelu", "gelu"])
def test_activations_equal_their_formulas(name):
    x = np.linspace(-6, 6, 101, dtype=np.float64)
    from math import erf, sqrt

    exact = {
        "quick_gelu": x / (1 + np.exp(-1.702 * x)),
        "gelu": np.array([v * 0.5 * (1 + erf(v / sqrt(2))) for v in x]),
    }[name]
    function = functions.ACTIVATIONS[name]
    np.testing.assert_allclose(function(jnp.asarray(x, jnp.float32)), exact, atol=1e-6)
    step = 1e-5
    slope = jax.vmap(jax.grad(function))(jnp.asarray(x, jnp.float32))
    numeric = {
        "quick_gelu": lambda v: v / (1 + np.exp(-1.702 * v)),
        "gelu": lambda v: np.array([u * 0.5 * (1 + erf(u / sqrt(2))) for u in v]),
    }[name]
    central = (numeric(x + step) - numeric(x - step)) / (2 * step)
    np.testing.assert_allclose(slope, central, atol=2e-6)


def blocks(count=3, activation="quick_gelu"):
    config = TowerConfig(16, 32, count, 4, activation=activation)
    return layers.Block(config, rng=np.random.default_rng(0))


def one_by_one(stacked, x, mask, count):
    graphdef, state = nnx.split(stacked)
    for i in range(count):
        block = nnx.merge(graphdef, jax.tree.map(lambda p, i=i: p[i], state))
        x = block(x, mask_bias(mask), scan.LayerInputs())
    return x


def test_scan_equals_layer_after_layer():
    x = jax.random.normal(jax.random.key(1), (2, 7, 16))
    mask = functions.causal_mask(7)
    scanned = layers.run_stack(blocks(), x, layers=3, remat="none", mask=mask)
    np.testing.assert_allclose(scanned, one_by_one(blocks(), x, mask, 3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_what_is_stored_and_not_the_gradient(remat):
    x = jax.random.normal(jax.random.key(1), (4, 50, 16))

    def loss(state, remat):
        model = nnx.merge(graphdef, state, copy=True)
        return (layers.run_stack(model, x, layers=8, remat=remat) ** 2).sum()

    graphdef, state = nnx.split(blocks(8))
    compiled = {
        name: jax.jit(lambda s, name=name: jax.grad(loss)(s, name)).lower(state).compile()
        for name in ("none", remat)
    }
    plain, saving = (f.memory_analysis().temp_size_in_bytes for f in compiled.values())
    assert saving < plain
    a, b = (f(state) for f in compiled.values())
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-3), a, b)


def test_causal_mask_hides_the_future():
    x = jax.random.normal(jax.random.key(1), (1, 6, 16))
    mask = functions.causal_mask(6)

    def third(x):
        return layers.run_stack(blocks(), x, layers=3, remat="none", mask=mask)[0, 2].sum()

    seen = np.abs(jax.grad(third)(x)[0]).sum(-1)
    assert (seen[:3] > 0).all() and (seen[3:] == 0).all()


def test_bfloat16_stays_close_and_keeps_its_dtype():
    x = jax.random.normal(jax.random.key(1), (2, 7, 16))
    exact = layers.run_stack(blocks(), x, layers=3, remat="none")
    half = layers.run_stack(blocks(), x.astype(jnp.bfloat16), layers=3, remat="none")
    assert half.dtype == jnp.bfloat16
    error = np.abs(half.astype(jnp.float32) - exact).max() / np.abs(exact).max()
    assert error < 2e-2


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones((1000,))
    assert (functions.dropout(x, 0.5, None) == x).all()
    dropped = functions.dropout(x, 0.25, jax.random.key(0))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    assert abs(float(dropped.mean()) - 1) < 0.1
