"""Attention of short sequences as kernels of a TPU: scores never leave a core's own memory.

A block holds all keys and values of a few media, and as many heads as fill 128 lanes. Of some rows
of queries at a time the forward kernel makes the scores, their softmax and the product with the
values. The backward kernel makes the scores anew, so nothing is kept but queries, keys and values.

Arrays are as linear layers make them, heads side by side: b media, at each of which p texts of l
rows look (or l rows, without that axis), and which have t rows; e is the number of heads times the
width of one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from uniadapter_jax.common.types import Array, Float, Int

_LANES, _SUBLANES = 128, 32
# Bytes of the 16 MiB that a kernel may use: of the scores of some rows with what is made of them;
# of operands and results, which lie there twice, so that the next come while one is at work.
_SCORES, _OPERANDS, _MOST = 4 * 2**20, 4 * 2**20, 14 * 2**20
_LIVE = 8  # arrays as large as scores, in float32, that live at once


class Operands(NamedTuple):
    """What attention reads; leading axes of `bias` may have size one.

    keep: 0 where dropout takes a weight away, else 1; h is the number of heads.
    """

    q: Float[Array, "b *p l e"]
    k: Float[Array, "b t e"]
    v: Float[Array, "b t e"]
    bias: Float[Array, "#b #p #l t"] | None
    factor: Float[Array, "b p t"] | None
    keep: Int[Array, "b h *p l t"] | None = None

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """b, p, l, t, e."""
        b, *p, length, e = self.q.shape
        return b, *(p or (1,)), length, self.k.shape[1], e


@dataclasses.dataclass(frozen=True)
class Cut:
    """How the work is cut into blocks.

    Attributes:
      width: of a head.
      heads: of a block; side by side they fill whole groups of lanes, or they are all.
      media: of a block.
      rows: (first, end) of the queries whose scores live at once.
      bytes: of a core's memory that it needs.
    """

    width: int
    heads: int
    media: int
    rows: tuple[tuple[int, int], ...]
    bytes: int

    @property
    def lanes(self) -> tuple[slice, ...]:
        """Of every head in its block."""
        return tuple(slice(j * self.width, (j + 1) * self.width) for j in range(self.heads))


def cut(of: Operands, heads: int) -> Cut:
    """The blocks for operands with so many heads."""
    b, p, length, t, e = of.sizes
    width = e // heads
    filling = (n for n in range(1, heads) if heads % n == 0 and n * width % _LANES == 0)
    together = next(filling, heads)
    wide, long = _up(together * width, _LANES), _up(t, _LANES)
    most = max(_SCORES // (4 * _LIVE * long), _SUBLANES)
    step = _up(-(-length // -(-length // most)), _SUBLANES)
    rows = tuple((start, min(start + step, length)) for start in range(0, length, step))
    # Of one medium: queries, result and its gradient; keys and values, and the gradients of both.
    each = 3 * p * _up(length, _SUBLANES) + 4 * _up(t, _SUBLANES)
    each *= wide * of.q.dtype.itemsize
    shared = 0
    if of.bias is not None:
        plane = 4 * of.bias.shape[1] * _up(of.bias.shape[2], _SUBLANES) * long
        each, shared = (each, plane) if len(of.bias) == 1 else (each + plane, 0)
    if of.factor is not None:
        each += 2 * 4 * _up(p, _SUBLANES) * long
    if of.keep is not None:
        each += together * p * _up(length, _SUBLANES) * long
    room = min(b, max(1, (_OPERANDS // 2 - shared) // each))
    # A last block with fewer media works as long as the others.
    media = next((n for n in range(room, room // 2, -1) if b % n == 0), room)
    sums = 4 * 4 * _up(t, _SUBLANES) * _up(width, _LANES)
    scores = 4 * _LIVE * min(step, _up(length, _SUBLANES)) * long
    return Cut(width, together, media, rows, 2 * (media * each + shared) + scores + sums)


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


def fits(of: Operands, heads: int) -> bool:
    """Whether blocks fit a core's memory: not where thousands of keys are seen at once."""
    return cut(of, heads).bytes <= _MOST


def forward(
    of: Operands, heads: int, *, rate: float = 0.0, interpret: bool
) -> Float[Array, "b *p l e"]:
    """dropout(softmax(factor * q k^T / sqrt(width of a head) + bias)) v, of every head.

    rate: of the dropout that made `of.keep`.
    """
    (z,) = _call(_forward, 2, of, heads, rate, (), (of.q,), None, interpret)
    return z


def backward(
    of: Operands, dz: Float[Array, "b *p l e"], heads: int, *, rate: float = 0.0, interpret: bool
) -> tuple[Array, Array, Array, Array | None]:
    """Gradients of q, k, v and factor."""
    parts = None
    if of.factor is not None:
        b, p, t = of.factor.shape
        parts = (b, heads // cut(of, heads).heads, p, t)
    dq, dk, dv, *more = _call(_backward, 5, of, heads, rate, (dz,), of[:3], parts, interpret)
    return dq, dk, dv, more[0].sum(1) if more else None


def _call(
    kernel: Callable[..., None],
    products: int,
    of: Operands,
    heads: int,
    rate: float,
    more: tuple[Array, ...],
    results: tuple[Array, ...],
    parts: tuple[int, ...] | None,
    interpret: bool,
) -> Sequence[Array]:
    """Runs a kernel over all media and heads.

    products: as large as that of queries and keys, which it makes.
    more: operands that, like q, have heads side by side; as all `results` have, whose shapes count.
    parts: shape of a further result, "b blocks p t".
    """
    blocks = cut(of, heads)
    b, p, length, t, e = of.sizes

    def side_by_side(x: Array) -> pl.BlockSpec:
        middle = x.shape[1:-1]
        block = (blocks.media, *middle, blocks.heads * blocks.width)
        return pl.BlockSpec(block, lambda i, j: (i, *(0 for _ in middle), j))

    def of_media(x: Array) -> pl.BlockSpec:
        shared, zeros = len(x) < b, (0,) * (x.ndim - 1)
        block = (1 if shared else blocks.media, *x.shape[1:])
        return pl.BlockSpec(block, lambda i, j: (0 if shared else i, *zeros))

    operands: list[tuple[Any, pl.BlockSpec]] = [(x, side_by_side(x)) for x in of[:3]]
    operands += [(x, of_media(x)) for x in (of.bias, of.factor) if x is not None]
    if of.keep is not None:
        rest = of.keep.shape[2:]
        zeros = (0,) * len(rest)
        block = (blocks.media, blocks.heads, *rest)
        operands.append((of.keep, pl.BlockSpec(block, lambda i, j: (i, j, *zeros))))
    operands += [(x, side_by_side(x)) for x in more]
    made: list[tuple[Any, pl.BlockSpec]] = [
        (jax.ShapeDtypeStruct(x.shape, x.dtype), side_by_side(x)) for x in results
    ]
    if parts is not None:
        spec = pl.BlockSpec((blocks.media, None, *parts[2:]), lambda i, j: (i, j, 0, 0))
        made.append((jax.ShapeDtypeStruct(parts, jnp.float32), spec))
    scores = b * p * length * t
    return pl.pallas_call(
        functools.partial(kernel, blocks, *(x is not None for x in of[3:]), rate),
        grid=(pl.cdiv(b, blocks.media), heads // blocks.heads),
        in_specs=[spec for _, spec in operands],
        out_specs=[spec for _, spec in made],
        out_shape=[shape for shape, _ in made],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * scores * e,
            transcendentals=scores * heads,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x, _ in (*operands, *made)),
        ),
        interpret=interpret,
        name=f"attention{kernel.__name__}",
    )(*(x for x, _ in operands))


def _forward(cut: Cut, biased: bool, scaled: bool, dropped: bool, rate: float, *refs: Any) -> None:
    given = iter(refs)
    q_ref, k_ref, v_ref = (next(given) for _ in range(3))
    adjust = _Adjust.of(given, biased, scaled)
    dropout = _Dropout(next(given) if dropped else None, rate)
    (z_ref,) = given

    def rows(i: Any, head: int, lanes: slice) -> None:
        k, v = k_ref[i, :, lanes], v_ref[i, :, lanes]

        def text(p: Any, none: None) -> None:
            for start, end in cut.rows:
                here = _rows(q_ref, i, p, start, end, lanes)
                scores = _product(_narrowed(q_ref[here], cut.width), k, 1, 1)
                weights = _softmax(adjust(scores, i, p, start, end))
                weights = dropout(weights, i, head, p, start, end).astype(v.dtype)
                z_ref[here] = _product(weights, v, 1, 0).astype(z_ref.dtype)

        _loop(_texts(q_ref), text, None)

    _of_each(cut, rows)


def _backward(cut: Cut, biased: bool, scaled: bool, dropped: bool, rate: float, *refs: Any) -> None:
    given = iter(refs)
    q_ref, k_ref, v_ref = (next(given) for _ in range(3))
    adjust = _Adjust.of(given, biased, scaled)
    dropout = _Dropout(next(given) if dropped else None, rate)
    dz_ref, dq_ref, dk_ref, dv_ref = (next(given) for _ in range(4))
    dfactor_ref = next(given, None)
    if dfactor_ref is not None:  # it sums over heads
        dfactor_ref[...] = jnp.zeros(dfactor_ref.shape, jnp.float32)

    def rows(i: Any, head: int, lanes: slice) -> None:
        k, v = k_ref[i, :, lanes], v_ref[i, :, lanes]

        def text(p: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            dk, dv = sums
            for start, end in cut.rows:
                here = _rows(q_ref, i, p, start, end, lanes)
                q, dz = _narrowed(q_ref[here], cut.width), dz_ref[here]
                raw = _product(q, k, 1, 1)
                weights = _softmax(adjust(raw, i, p, start, end))
                some = dropout(weights, i, head, p, start, end).astype(v.dtype)
                dv += _product(some, dz, 0, 0)
                dweights = dropout(_product(dz, v, 1, 1), i, head, p, start, end)
                slope = dweights - jnp.sum(weights * dweights, axis=1, keepdims=True)
                dscores = weights * slope
                if dfactor_ref is not None:
                    dfactor = jnp.sum(dscores * raw, axis=0, keepdims=True)
                    dfactor_ref[i, pl.ds(p, 1)] += dfactor
                dscores = adjust.times_factor(dscores, i, p).astype(k.dtype)
                dq = _product(dscores, k, 1, 0) * cut.width**-0.5
                dq_ref[here] = dq.astype(dq_ref.dtype)
                dk += _product(dscores, q, 0, 0)
            return dk, dv

        zeros = jnp.zeros(k.shape, jnp.float32)
        dk, dv = _loop(_texts(q_ref), text, (zeros, zeros))
        dk_ref[i, :, lanes], dv_ref[i, :, lanes] = dk.astype(k.dtype), dv.astype(v.dtype)

    _of_each(cut, rows)


class _Adjust(NamedTuple):
    """What becomes of raw scores "rows t" ahead of the softmax."""

    bias: Any
    factor: Any

    @classmethod
    def of(cls, refs: Iterator[Any], biased: bool, scaled: bool) -> _Adjust:
        """With the next of the kernel's operands."""
        return cls(next(refs) if biased else None, next(refs) if scaled else None)

    def times_factor(self, scores: Array, i: Any, p: Any) -> Array:
        """Scores, or their gradient, of text p of medium i."""
        return scores if self.factor is None else scores * self.factor[i, pl.ds(p, 1)]

    def __call__(self, scores: Array, i: Any, p: Any, start: int, end: int) -> Array:
        scores = self.times_factor(scores, i, p)
        if self.bias is None:
            return scores
        media, texts, rows, _ = self.bias.shape
        here = slice(start, end) if rows > 1 else slice(0, 1)
        return scores + self.bias[i if media > 1 else 0, p if texts > 1 else 0, here]


class _Dropout(NamedTuple):
    """What becomes of weights "rows t" behind the softmax, and of their gradient."""

    keep: Any
    rate: float

    def __call__(self, weights: Array, i: Any, head: int, p: Any, start: int, end: int) -> Array:
        if self.keep is None:
            return weights
        text = (p,) if len(self.keep.shape) == 5 else ()
        keep = self.keep[(i, head, *text, slice(start, end))].astype(jnp.float32)
        return weights * (keep * (1.0 / (1.0 - self.rate)))


def _texts(ref: Any) -> int:
    return ref.shape[1] if len(ref.shape) == 4 else 1


def _rows(ref: Any, i: Any, p: Any, start: int, end: int, lanes: slice) -> tuple[Any, ...]:
    """The place of rows of text p of medium i."""
    text = (p,) if len(ref.shape) == 4 else ()
    return (i, *text, slice(start, end), lanes)


def _of_each(cut: Cut, work: Callable[[Any, int, slice], None]) -> None:
    """`work` for each head of each medium of a block."""

    def medium(i: Any, none: None) -> None:
        for head, lanes in enumerate(cut.lanes):
            work(i, head, lanes)

    _loop(cut.media, medium, None)


def _loop(count: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    return body(0, start) if count == 1 else lax.fori_loop(0, count, body, start)


def _narrowed(q: Array, width: int) -> Array:
    """q / sqrt(width), rounded as its dtype rounds it: not every core computes in bfloat16."""
    scale = jnp.asarray(width**-0.5, q.dtype).astype(jnp.float32)
    return (q.astype(jnp.float32) * scale).astype(q.dtype)


def _product(x: Array, y: Array, along: int, of: int) -> Array:
    """x times y along an axis of each, in float32."""
    dims = (((along,), (of,)), ((), ()))
    return lax.dot_general(x, y, dims, preferred_element_type=jnp.float32)


def _softmax(scores: Array) -> Array:
    raised = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
    return raised / jnp.sum(raised, axis=1, keepdims=True)
