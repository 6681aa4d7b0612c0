"""Rows of other devices, as if all were here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.parallel.ring import fetch_rows

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


def test_no_device_holds_all_rows():
    compiled, *_ = on(8, 1, 1)
    assert f"[{N},{WIDE[0]},{WIDE[1]}]" not in compiled.as_text()
