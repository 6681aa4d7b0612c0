"""The kernels of attention, interpreted, against its plain form: values and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from uniadapter_jax.backbones import attention_kernels as kernels
from uniadapter_jax.backbones import fused_attention, merging
from uniadapter_jax.backbones.attention import attend, mask_bias
from uniadapter_jax.backbones.functions import causal_mask
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.parallel import mesh as meshes

ONE = meshes.one_device()
KERNEL = fused_attention.Kernel(ONE, meshes.BATCH_AXES, "tensor", interpret=True)


def normal(seed, shape, dtype="float32"):
    """Numbers that bfloat16 has, too."""
    rounded = jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(jnp.bfloat16)
    return rounded.astype(dtype)


def padding(rows, length):
    lengths = jnp.arange(rows)[:, None] % (length - 1) + 1
    seen = jnp.arange(length)[None] < lengths
    return jnp.where(seen, 0.0, -1e9)[:, None, None]


@dataclasses.dataclass
class Case:
    """Shapes "q h p l k" (p is 0 without that axis) and t; what is added and multiplied."""

    q: int
    h: int
    p: int
    l: int
    k: int
    t: int
    bias: object = None
    factor: bool = False

    def operands(self, dtype):
        texts = (self.p,) if self.p else ()
        q = normal(0, (self.q, self.h, *texts, self.l, self.k), dtype)
        k, v = (normal(seed, (self.q, self.h, self.t, self.k), dtype) for seed in (1, 2))
        factor = 1 + 0.3 * normal(3, (self.q, self.p, self.t)) if self.factor else None
        return q, k, v, factor


CASES = {
    "pictures": Case(3, 4, 0, 17, 64, 17),
    "one head of 128": Case(2, 3, 0, 9, 128, 9),
    "heads that fill no lanes": Case(2, 3, 0, 5, 8, 5),
    "causal": Case(2, 2, 0, 12, 8, 12, mask_bias(causal_mask(12))),
    "padding": Case(5, 2, 0, 12, 8, 12, padding(5, 12)),
    "padding and causal": Case(3, 2, 0, 6, 8, 6, padding(3, 6) + mask_bias(causal_mask(6)) / 2),
    "texts of a medium": Case(2, 2, 3, 5, 8, 11, padding(2, 11)),
    "a bias for all keys": Case(2, 2, 0, 5, 8, 11, jnp.full((1, 1, 1, 1), 0.5)),
    "a bias of texts": Case(2, 2, 3, 5, 8, 11, normal(9, (2, 3, 5, 11))),
    "frame factors": Case(2, 4, 3, 5, 64, 11, padding(2, 11), factor=True),
    "frame factors alone": Case(2, 2, 2, 5, 8, 6, factor=True),
    "one word of decoding": Case(3, 2, 0, 1, 8, 7, padding(3, 7)),
    "rows in parts": Case(2, 2, 0, 40, 64, 1500),
}


def values_and_gradients(case, dtype, fused):
    operands = case.operands(dtype)
    weigh = normal(7, operands[0].shape)

    def total(q, k, v, factor):
        z = attend(q, k, v, bias=case.bias, factor=factor, fused=fused)
        return (z.astype(jnp.float32) * weigh).sum(), z

    wanted = (0, 1, 2, 3) if case.factor else (0, 1, 2)
    call = jax.jit(jax.value_and_grad(total, argnums=wanted, has_aux=True))
    (_, z), gradients = call(*operands)
    return z, *gradients


@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_plain_form(name):
    case = CASES[name]
    plain = values_and_gradients(case, "float32", None)
    for dtype, tolerance in (("float32", 2e-5), ("bfloat16", 1e-2)):
        made = values_and_gradients(case, dtype, KERNEL)
        for x, y, of in zip(made, plain, (*case.operands(dtype)[:1], *case.operands(dtype))):
            assert (x.dtype, x.shape) == (of.dtype, of.shape)
            size = jnp.abs(y).max()
            assert jnp.abs(x.astype(jnp.float32) - y).max() <= tolerance * size
