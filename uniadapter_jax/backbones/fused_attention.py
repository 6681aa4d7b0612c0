"""Attention in one piece, for devices that have it: scores are never written to their memory.

Where a form does not apply, as to more keys than fit a core, it gives None and the plain form is
used.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import CustomVJPPrimal
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from uniadapter_jax.backbones import attention_kernels as kernels
from uniadapter_jax.backbones.attention_kernels import Operands
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Array, Bool, Float


class Inputs(NamedTuple):
    """What `attention.attend` is given; keep, rate: which weights dropout leaves, and its rate."""

    q: Float[Array, "q h *p l k"]
    k: Float[Array, "q h t k"]
    v: Float[Array, "q h t k"]
    bias: Float[Array, "#q #p #l #t"] | None = None
    factor: Float[Array, "q p t"] | None = None
    keep: Bool[Array, "q h *p l t"] | None = None
    rate: float = 0.0


class Fused(Protocol):
    """A form of attention beside the plain one."""

    def __call__(self, of: Inputs) -> Float[Array, "q h *p l k"] | None:
        """What `attention.attend` gives; None where the form does not apply."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The kernels of a TPU, on every device of a mesh for its rows and heads.

    `bias` has no gradient: masks are not trained.

    Attributes:
      rows, heads: the axes of the mesh that cut the batch, and the heads.
      interpret: whether the kernels are run step by step, by any device.
    """

    mesh: Mesh
    rows: tuple[str, ...]
    heads: str
    interpret: bool = False

    def __call__(self, of: Inputs) -> Float[Array, "q h *p l k"] | None:
        """See `Fused`. Not where rows or heads do not divide, or keys do not fit."""
        q, k, v, bias, factor, keep, rate = of
        shape, alike = q.shape, q.dtype == k.dtype == v.dtype
        q = q if q.ndim == 5 else q[:, :, None]
        b, heads, p, length, width = q.shape
        # Without an axis of texts, that of the bias stands for heads.
        of_heads = bias is not None and len(shape) == 4 and bias.shape[1] > 1
        shards = math.prod(self.mesh.shape[axis] for axis in self.rows)
        parts = self.mesh.shape[self.heads]
        if not alike or of_heads or b % shards or heads % parts:
            return None
        if bias is not None:
            bias = bias.astype(jnp.float32)
            bias = jnp.broadcast_to(bias, (*bias.shape[:3], k.shape[2]))
        by_row = bias is not None and bias.shape[1:3] != (1, 1)
        texts = (p, length) if factor is not None or (p > 1 and by_row) else (p * length,)
        side = q.transpose(0, 2, 3, 1, 4)
        side = side.reshape(b, *texts, heads * width)
        k, v = (y.swapaxes(1, 2).reshape(b, -1, heads * width) for y in (k, v))
        factor = None if factor is None else factor.astype(jnp.float32)
        if keep is not None:
            keep = keep.reshape(b, heads, *texts, k.shape[1]).astype(jnp.int8)
        operands = Operands(side, k, v, bias, factor, keep)
        if not kernels.fits(self._of_device(operands, shards, parts), heads // parts):
            return None
        z = _attention(_Placed(self, heads // parts, rate), operands)
        return z.reshape(b, p, length, heads, width).transpose(0, 3, 1, 2, 4).reshape(shape)

    def _of_device(self, of: Operands, shards: int, parts: int) -> Operands:
        """Shapes on one device."""

        def one(x: Array, by_heads: bool) -> Any:
            first, *middle, last = x.shape
            first = first // shards if first == len(of.q) else first
            return jax.ShapeDtypeStruct(
                (first, *middle, last // parts if by_heads else last), x.dtype
            )

        q, k, v = (one(x, True) for x in of[:3])
        bias, factor, keep = (None if x is None else one(x, False) for x in of[3:])
        return Operands(q, k, v, bias, factor, keep)


class _Placed(NamedTuple):
    """A kernel with the number of heads of a device, and the rate of dropout."""

    kernel: Kernel
    heads: int
    rate: float

    def specs(self, of: Operands) -> Operands:
        """How operands lie on the mesh."""
        by, heads, b = self.kernel.rows, self.kernel.heads, len(of.q)
        bias = None if of.bias is None else P(by if len(of.bias) == b else None)
        factor = None if of.factor is None else P(by)
        keys = P(by, None, heads)
        rows = P(by, *[None] * (of.q.ndim - 2), heads)
        keep = None if of.keep is None else P(by, heads)
        return Operands(rows, keys, keys, bias, factor, keep)  # type: ignore[arg-type]

    def everywhere(self, function: Any, in_specs: Any, out_specs: Any) -> Any:
        """`function` on each device for what it has."""
        mesh = self.kernel.mesh
        if mesh.size == 1:
            return function
        return jax.shard_map(
            function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(placed: _Placed, of: Operands) -> Float[Array, "b *p l e"]:
    specs = placed.specs(of)

    def local(of: Operands) -> Array:
        return kernels.forward(
            of, placed.heads, rate=placed.rate, interpret=placed.kernel.interpret
        )

    return placed.everywhere(local, (specs,), specs.q)(of)


def _attention_fwd(placed: _Placed, of: Any) -> tuple[Array, Operands]:
    if of.bias is not None and of.bias.perturbed:
        raise UserError(
            "config.compute.attention: the fused form has no gradient of what is added to scores, "
            "and something trained makes it; set it to xla"
        )
    of = jax.tree.map(lambda x: x.value, of, is_leaf=lambda x: isinstance(x, CustomVJPPrimal))
    return _attention(placed, of), of


def _attention_bwd(placed: _Placed, of: Operands, dz: Array) -> tuple[Operands]:
    specs, heads = placed.specs(of), placed.kernel.heads

    def local(of: Operands, dz: Array) -> tuple[Array, Array, Array, Array | None]:
        dq, dk, dv, dfactor = kernels.backward(
            of, dz, placed.heads, rate=placed.rate, interpret=placed.kernel.interpret
        )
        if dfactor is not None and placed.kernel.mesh.shape[heads] > 1:
            dfactor = lax.psum(dfactor, heads)
        return dq, dk, dv, dfactor

    results = (*specs[:3], specs.factor)
    if isinstance(dz, jax.custom_derivatives.SymbolicZero):
        dz = jnp.zeros(of.q.shape, of.v.dtype)
    dq, dk, dv, dfactor = placed.everywhere(local, (specs, specs.q), results)(of, dz)
    return (Operands(dq, dk, dv, None, dfactor),)


_attention.defvjp(_attention_fwd, _attention_bwd, symbolic_zeros=True)


@dataclasses.dataclass(frozen=True)
class CuDNN:
    """A GPU's, by `jax.nn.dot_product_attention`, in bfloat16; without masks, which it would round.

    Never run on a GPU so far.
    """

    implementation: Literal["cudnn", "xla"] = "cudnn"

    def __call__(self, of: Inputs) -> Float[Array, "q h *p l k"] | None:
        """See `Fused`. Not in float32, with a bias, factor or dropout, or for other heads."""
        q, k, v, *adjusted, _ = of
        alike = q.dtype == k.dtype == v.dtype == jnp.bfloat16
        width = q.shape[-1]
        plain = all(x is None for x in adjusted)
        if not alike or not plain or width % 8 or width > 128:
            return None
        rows = q.reshape(*q.shape[:2], -1, width)
        rows, k, v = (y.swapaxes(1, 2) for y in (rows, k, v))
        z = jax.nn.dot_product_attention(rows, k, v, implementation=self.implementation)
        return z.swapaxes(1, 2).reshape(q.shape)
