"""The contrastive loss in memory that does not grow with the global batch.

The same value and gradients as `losses.retrieval_loss`, which holds n x n logits cut by rows and
the clips of the whole batch on every device. Here clips never leave their device. Texts, which are
as many times smaller as a clip has frames, go round a ring of the devices that share the batch,
and take along what their rows of logits have summed up so far. A device meets the visiting texts
with its own clips in blocks. Of each row and column only sums are kept (a running logsumexp), and
the backward pass goes round once more and computes every block anew.

Memory of a device: its own features, their gradients in float32, and a few blocks. Work: that of
the dense loss, and one more forward pass of the logits.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from uniadapter_jax.common.types import Array, Bool, Float, Int, PyTree
from uniadapter_jax.parallel.ring import Cut, Ring, cut_rows
from uniadapter_jax.tasks.retrieval.losses import (
    Comparison,
    Duplicates,
    Loss,
    Pairs,
    capped_scale,
    check_duplicates,
)
from uniadapter_jax.tasks.retrieval.ring_objectives import (
    SIGMOID,
    SOFTMAX,
    Kept,
    Names,
    Objective,
    Sums,
    unseen,
)
from uniadapter_jax.tasks.retrieval.similarity import SIMILARITIES, Clips, Similarity

# Entries of an array of a block: 4 MiB in float32. A block needs a handful of them.
BLOCK = 2**20
MOST_TEXTS = 1024  # of a block

_Tree = TypeVar("_Tree")
Line = tuple[Array, Array]  # scale and bias: a logit is scale * cosine + bias


@dataclasses.dataclass(frozen=True)
class _Form:
    """Settings that are known before any array; hashable, as a custom derivative needs."""

    objective: Objective
    similarity: str
    temperature: float
    duplicates: Duplicates
    mesh: Mesh | None

    @classmethod
    def of(cls, objective: Objective, how: Comparison) -> _Form:
        """Raises `ValueError` for an unknown rule for duplicates."""
        check_duplicates(how.duplicates)
        return cls(objective, *how._replace(temperature=float(how.temperature)))

    @property
    def chosen(self) -> Similarity:
        return SIMILARITIES[self.similarity]

    @property
    def ring(self) -> Ring:
        return Ring(self.mesh)


def _cuts(text: Array, frames: Array, chosen: Similarity) -> tuple[Cut, Cut]:
    """Cuts texts and clips so that no array of a block has more than `BLOCK` entries."""
    texts = cut_rows(len(text), MOST_TEXTS)
    deep = frames.shape[1] if chosen.needs_frames else 1
    return texts, cut_rows(len(frames), BLOCK // (texts.size * deep))


def _digest_cut(frames: Array) -> Cut:
    return cut_rows(len(frames), BLOCK // math.prod(frames.shape[1:]))


def ring_retrieval_loss(pairs: Pairs, logit_scale: Float[Array, ""], how: Comparison) -> Loss:
    """`losses.retrieval_loss`, argument by argument, equal to it up to float32 rounding.

    The batch must divide over the mesh's batch axes. With duplicates='positive' the number of a
    row's targets is counted on the way. Has first derivatives only.
    """
    scale = capped_scale(logit_scale)
    loss, accuracy = _loss(_Form.of(SOFTMAX, how), *pairs, (scale, jnp.zeros_like(scale)))
    return loss, {**accuracy, "logit_scale": scale}


def ring_sigmoid_loss(
    pairs: Pairs, logit_scale: Float[Array, ""], logit_bias: Float[Array, ""], how: Comparison
) -> Loss:
    """`losses.sigmoid_loss`, argument by argument, as `ring_retrieval_loss` is of its like."""
    scale, bias = jnp.exp(logit_scale.astype(jnp.float32)), logit_bias.astype(jnp.float32)
    loss, accuracy = _loss(_Form.of(SIGMOID, how), *pairs, (scale, bias))
    return loss, {**accuracy, "logit_scale": scale, "logit_bias": bias}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    form: _Form, text: Array, frames: Array, mask: Array, item: Array, line: Line
) -> tuple[Array, dict[str, Array]]:
    return _loss_fwd(form, text, frames, mask, item, line)[0]


def _loss_fwd(
    form: _Form, text: Array, frames: Array, mask: Array, item: Array, line: Line
) -> tuple[tuple[Array, dict[str, Array]], PyTree]:
    rows = (True, True, True, True, (False, False))
    forward = form.ring.map(functools.partial(_forward, form), rows, (False, True))
    value, kept = forward(text, frames, mask, item, line)
    return value, (text, frames, mask, item, line, kept)


def _loss_bwd(form: _Form, residuals: PyTree, cotangent: Any) -> tuple[Array | None, ...]:
    rows = (True, True, True, True, (False, False), True, False)
    rows_out = (True, True, (False, False))
    backward = form.ring.map(functools.partial(_backward, form), rows, rows_out)
    d_text, d_frames, d_line = backward(*residuals, cotangent[0])
    return d_text, d_frames, None, None, d_line


_loss.defvjp(_loss_fwd, _loss_bwd)


def _names(form: _Form, item: Int[Array, " n"], owner: Array | int) -> Names:
    place = owner * len(item) + jnp.arange(len(item), dtype=jnp.int32)
    return Names(item, place, item if form.duplicates == "positive" else place)


def _forward(
    form: _Form, text: Array, frames: Array, mask: Array, item: Array, line: Line
) -> tuple[tuple[Array, dict[str, Array]], tuple[Kept, Kept]]:
    """The loss of the global batch, and what the backward pass needs of own texts and clips."""
    scale, bias = line
    digest = _digest(form.chosen, frames, mask)
    texts, clips = _cuts(text, frames, form.chosen)
    own = _names(form, item, form.ring.here)
    see = form.objective.see

    def meet(j: Array, seen: tuple[Sums, Sums], visitor: tuple[Array, Names]) -> tuple[Sums, Sums]:
        of_texts, of_clips = seen
        some = form.chosen.join(*clips.take((digest, frames, mask), j))
        names = clips.take(own, j)

        def block(i: Array, carry: tuple[Sums, Sums]) -> tuple[Sums, Sums]:
            of_texts, of_some = carry
            rows, row_names = texts.take(visitor, i)
            logits = scale * form.chosen.compare(rows, some, form.temperature) + bias
            logits = _masked(logits, texts.fresh(i), clips.fresh(j), -jnp.inf)
            updated = see(texts.take(of_texts, i), logits, row_names, names)
            return texts.put(of_texts, updated, i), see(of_some, logits.T, names, row_names)

        carry = of_texts, clips.take(of_clips, j)
        of_texts, of_some = jax.lax.fori_loop(0, texts.count, block, carry)
        return of_texts, clips.put(of_clips, of_some, j)

    def step(t: Array, carry: PyTree) -> PyTree:
        text, item, of_texts, of_clips = carry
        visitor = text, _names(form, item, (form.ring.here - t) % form.ring.size)
        of_texts, of_clips = jax.lax.fori_loop(
            0, clips.count, lambda j, seen: meet(j, seen, visitor), (of_texts, of_clips)
        )
        return *form.ring.next((text, item, of_texts)), of_clips

    # After as many steps as there are devices all texts are at home again.
    carry = text, item, unseen(len(text)), unseen(len(text))
    *_, of_texts, of_clips = jax.lax.fori_loop(0, form.ring.size, step, carry)
    sums = form.ring.sum(
        {
            "loss": form.objective.share * form.objective.total(of_texts, of_clips),
            "t2v_accuracy": jnp.sum(of_texts.hit.astype(jnp.float32)),
            "v2t_accuracy": jnp.sum(of_clips.hit.astype(jnp.float32)),
        }
    )
    means = {name: value / (form.ring.size * len(text)) for name, value in sums.items()}
    kept = of_texts.kept(), of_clips.kept()
    return (means.pop("loss"), means), kept


def _masked(
    block: Float[Array, "n m"],
    rows: Bool[Array, " n"] | None,
    columns: Bool[Array, " m"] | None,
    value: float,
) -> Float[Array, "n m"]:
    """`value` in rows and columns that another block has."""
    if rows is not None:
        block = jnp.where(rows[:, None], block, value)
    return block if columns is None else jnp.where(columns[None, :], block, value)


def _backward(
    form: _Form,
    text: Array,
    frames: Array,
    mask: Array,
    item: Array,
    line: Line,
    kept: tuple[Kept, Kept],
    cotangent: Array,
) -> tuple[Array, Array, Line]:
    """Gradients with respect to own texts, own frames, and scale and bias."""
    scale, bias = line
    share, slope_of = form.objective.share, form.objective.slope
    chosen, n = form.chosen, form.ring.size * len(text)
    digest = _digest(chosen, frames, mask)
    texts, clips = _cuts(text, frames, chosen)
    own = _names(form, item, form.ring.here)
    # Sums of many blocks: float32, whatever the features are.
    d_text = jnp.zeros(text.shape, jnp.float32)
    d_digest = jax.tree.map(jnp.zeros_like, digest)
    d_frames = jnp.zeros(frames.shape, jnp.float32) if chosen.needs_frames else None

    def meet(j: Array, carry: PyTree, visitor: tuple[Array, Names, Kept]) -> PyTree:
        d_text, d_digest, d_frames, d_line = carry
        some = chosen.join(*clips.take((digest, frames, mask), j))
        names, columns = clips.take((own, kept[1]), j)

        def block(i: Array, carry: PyTree) -> PyTree:
            d_text, d_digest, d_frames, (d_scale, d_bias) = carry
            rows, row_names, row = texts.take(visitor, i)

            def compare(rows: Array, digest: Any, frames: Array | None) -> Array:
                return chosen.compare(rows, Clips(digest, frames, some.mask), form.temperature)

            cosine, pull = jax.vjp(compare, rows, some.digest, some.frames)
            slope = slope_of(scale * cosine + bias, row_names, names, row, columns)
            slope = _masked(slope, texts.fresh(i), clips.fresh(j), 0.0) * (share / n * cotangent)
            add_text, add_digest, add_frames = pull(scale * slope)
            return (
                texts.add(d_text, add_text, i),
                *_plus((d_digest, d_frames), (add_digest, add_frames)),
                (d_scale + jnp.sum(slope * cosine), d_bias + jnp.sum(slope)),
            )

        zeros = jax.tree.map(
            lambda x: jnp.zeros((clips.size, *x.shape[1:]), x.dtype), (d_digest, d_frames)
        )
        d_text, *more, d_line = jax.lax.fori_loop(0, texts.count, block, (d_text, *zeros, d_line))
        return d_text, *clips.add((d_digest, d_frames), tuple(more), j), d_line

    def step(t: Array, carry: PyTree) -> PyTree:
        text, item, row, *sums = carry
        visitor = text, _names(form, item, (form.ring.here - t) % form.ring.size), row
        d_text, *sums = jax.lax.fori_loop(
            0, clips.count, lambda j, sums: meet(j, sums, visitor), tuple(sums)
        )
        text, item, row, d_text = form.ring.next((text, item, row, d_text))
        return text, item, row, d_text, *sums

    zero = jnp.zeros((), jnp.float32)
    carry = text, item, kept[0], d_text, d_digest, d_frames, (zero, zero)
    *_, d_text, d_digest, d_frames, d_line = jax.lax.fori_loop(0, form.ring.size, step, carry)
    d_frames = _through_digest(chosen, frames, mask, d_digest, d_frames)
    return d_text.astype(text.dtype), d_frames, form.ring.sum(d_line)


def _plus(sums: _Tree, more: _Tree) -> _Tree:
    return jax.tree.map(lambda x, y: x + y.astype(x.dtype), sums, more)


def _digest(chosen: Similarity, frames: Array, mask: Array) -> Any:
    """`chosen.digest` of the whole, part by part: on the way it needs float32 copies of frames."""
    cut = _digest_cut(frames)
    shapes = jax.eval_shape(chosen.digest, frames, mask)
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def part(i: Array, made: Any) -> Any:
        return cut.put(made, chosen.digest(*cut.take((frames, mask), i)), i)

    return jax.lax.fori_loop(0, cut.count, part, empty)


def _through_digest(
    chosen: Similarity, frames: Array, mask: Array, d_digest: Any, d_frames: Array | None
) -> Array:
    """The gradient with respect to frames: what they got, and what their digest got of them."""
    cut = _digest_cut(frames)

    def part(i: Array, made: Array) -> Array:
        some, seen, d_some, more = cut.take((frames, mask, d_digest, d_frames), i)
        (gradient,) = jax.vjp(lambda x: chosen.digest(x, seen), some)[1](d_some)
        if more is not None:
            gradient = gradient.astype(jnp.float32) + more
        return cut.put(made, gradient, i)

    return jax.lax.fori_loop(0, cut.count, part, jnp.zeros_like(frames))
