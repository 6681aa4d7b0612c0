"""Rows of other devices, as if all were here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.parallel.ring import fetch_rows
from uniadapter_jax.planning.hlo import Module
from uniadapter_jax.planning.traffic import collectives

N, WIDE = 64, (32, 48)


def fetched(mesh, rows):
    """(compiled, loss, gradient) of a function of rows that others have."""
    rng = np.random.default_rng(0)
    index = jnp.asarray(rng.integers(0, N, N), jnp.int32)
    weight = jnp.asarray(rng.standard_normal(WIDE), jnp.float32)

    def loss(states):
        found = fetch_rows({**rows, "states": states}, index, mesh)
        weighed = jnp.where(found["mask"][..., None], found["states"] * weight[None], 0.0)
        return jnp.sum(weighed**2)

    placed = jax.device_put(rows["states"], meshes.batch_sharding(mesh))
    compiled = jax.jit(jax.value_and_grad(loss)).lower(placed).compile()
    return compiled, *compiled(placed)


@functools.cache
def on(*sizes):
    rng = np.random.default_rng(1)
    rows = {
        "states": jnp.asarray(rng.standard_normal((N, *WIDE)), jnp.float32),
        "mask": jnp.asarray(rng.random((N, WIDE[0])) > 0.5),
    }
    count = int(np.prod(sizes))
    named = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    return fetched(meshes.make_mesh(named, jax.devices()[:count]), rows)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_every_mesh_finds_the_rows_of_one_device(sizes):
    _, wanted, gradient = on(1, 1, 1)
    _, loss, ours = on(*sizes)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-6)
    np.testing.assert_allclose(ours, gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("devices", [4, 8])
def test_what_a_device_sends_does_not_grow(devices):
    """Forward and backward twice its own rows each, by the compiled program."""
    compiled, *_ = on(devices, 1, 1)
    own = N // devices * WIDE[0] * WIDE[1] * 4
    moved = collectives(Module(compiled.as_text()), devices)
    sent = sum(kind.sent for kind in moved.values()) / own
    assert moved["all-to-all"].count >= 4 and 3.0 < sent <= 4.1
    assert "collective-permute" not in moved


def test_a_row_that_everyone_wants_adds_up_all_gradients():
    mesh = meshes.make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    states = jnp.arange(float(N * 16)).reshape(N, 16)
    index = jnp.full(N, 11, jnp.int32)
    gradient = jax.jit(jax.grad(lambda x: fetch_rows(x, index, mesh).sum()))(states)
    assert (gradient[11] == N).all() and gradient.sum() == 16 * N


def test_no_device_holds_all_rows():
    compiled, *_ = on(8, 1, 1)
    assert f"[{N},{WIDE[0]},{WIDE[1]}]" not in compiled.as_text()
