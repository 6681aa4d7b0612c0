"""Contrastive losses over the global batch.

Dense formulas under jit: logits are n x n and cut by columns, clips stay where they are. So the
compiler adds one gather of the texts, a clip's frames being several times as large, one scatter of
their gradient, and reductions of vectors of length n. Nothing here names a collective; on one
device the program has none.
"""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from uniadapter_jax.common.types import Array, Bool, Float, Int
from uniadapter_jax.parallel.mesh import BATCH_AXES, constrain
from uniadapter_jax.tasks.retrieval.similarity import SIMILARITIES

# The pipeline avoids duplicates: then no clip comes twice, and the loss is that of 'negative'.
Duplicates = Literal["negative", "positive", "avoid"]

LARGEST_LOG_SCALE = math.log(100.0)  # CLIP, section 2.5
Loss = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]  # the value, and metrics


class Pairs(NamedTuple):
    """Raw features of a global batch of pairs; `item` names the clip of a row."""

    text: Float[Array, "n c"]
    frames: Float[Array, "n f c"]
    mask: Bool[Array, "n f"]
    item: Int[Array, " n"]


def with_each_caption(clips: Pairs, mesh: Mesh | None) -> Pairs:
    """All pairs of clips with their texts "b t c", each clip standing t times.

    So the rules and losses of pairs are those of several captions, too. Only features are copied,
    to where they are already, and each copy's gradient adds to its clip's.
    """
    several = clips.text.shape[1]

    def copied(x: Array) -> Array:
        return jnp.repeat(x, several, axis=0)

    text = clips.text.reshape(-1, clips.text.shape[-1])
    rest = clips.frames, clips.mask, clips.item
    return Pairs(*constrain((text, *map(copied, rest)), mesh, BATCH_AXES))


class Comparison(NamedTuple):
    """How pairs are compared: by a similarity, on a mesh (None means a single device)."""

    similarity: str
    temperature: float
    duplicates: Duplicates = "negative"
    mesh: Mesh | None = None


def contrastive_loss(
    logits: Float[Array, "n n"], item: Int[Array, " n"], duplicates: Duplicates = "negative"
) -> Float[Array, ""]:
    """Cross-entropy over rows and over columns, averaged; row i belongs to column i.

    `item` names the clip of a row. Rows of one clip are each other's negatives ('negative', as
    released), or share the target evenly ('positive').
    """
    logits = logits.astype(jnp.float32)
    targets = _targets(item, duplicates)
    # Sums over whole rows, not a diagonal: that would have to gather a row-sharded matrix.
    rows = jax.nn.logsumexp(logits, axis=1) - jnp.sum(targets * logits, axis=1)
    columns = jax.nn.logsumexp(logits, axis=0) - jnp.sum(targets.T * logits, axis=0)
    return 0.5 * (jnp.mean(rows) + jnp.mean(columns))


def _targets(item: Int[Array, " n"], duplicates: Duplicates) -> Float[Array, "n n"]:
    """Row-normalised targets; symmetric, as equality is, so the transpose serves the columns."""
    check_duplicates(duplicates)
    if duplicates == "positive":
        same = (item[:, None] == item[None, :]).astype(jnp.float32)
        return same / jnp.sum(same, axis=1, keepdims=True)
    return jnp.eye(item.shape[0], dtype=jnp.float32)


def check_duplicates(duplicates: str) -> None:
    """Raises `ValueError` unless it is one of `Duplicates`."""
    known = get_args(Duplicates)
    if duplicates not in known:
        raise ValueError(f"duplicates={duplicates!r}; choose one of {', '.join(known)}")


def retrieval_loss(pairs: Pairs, logit_scale: Float[Array, ""], how: Comparison) -> Loss:
    """Loss of a global batch of pairs, and metrics: accuracy both ways, the scale in use.

    `logit_scale` is CLIP's, a logarithm, capped at ln 100. On a mesh the clips stay sharded over
    its batch axes, and the texts are gathered once.
    """
    scale = capped_scale(logit_scale)
    logits = scale * _cosines(pairs, how)
    logits = constrain(logits.T, how.mesh, BATCH_AXES).T  # a column lies where its clip does
    loss = contrastive_loss(logits, pairs.item, how.duplicates)
    return loss, {**in_batch_accuracy(logits, pairs.item), "logit_scale": scale}


def sigmoid_loss(
    pairs: Pairs, logit_scale: Float[Array, ""], logit_bias: Float[Array, ""], how: Comparison
) -> Loss:
    """SigLIP's loss of a global batch of pairs (equation 1), and metrics as of `retrieval_loss`.

    -1/n sum_ij log sigmoid(z_ij (t x_i.y_j + b)), with z = 1 for pairs that belong together, else
    -1. `logit_scale` is the logarithm of t, which has no cap here. With duplicates='positive' a
    text belongs to all rows of its clip.
    """
    check_duplicates(how.duplicates)
    item = pairs.item
    scale, bias = jnp.exp(logit_scale.astype(jnp.float32)), logit_bias.astype(jnp.float32)
    logits = scale * _cosines(pairs, how) + bias
    logits = constrain(logits.T, how.mesh, BATCH_AXES).T
    names = item if how.duplicates == "positive" else jnp.arange(len(item))
    same = names[:, None] == names[None, :]
    loss = jnp.sum(jax.nn.softplus(jnp.where(same, -logits, logits))) / len(item)
    metrics = {"logit_scale": scale, "logit_bias": bias}
    return loss, {**in_batch_accuracy(logits, item), **metrics}


def capped_scale(logit_scale: Float[Array, ""]) -> Float[Array, ""]:
    """CLIP's factor of cosines, at most 100."""
    return jnp.exp(jnp.minimum(logit_scale.astype(jnp.float32), LARGEST_LOG_SCALE))


def _cosines(pairs: Pairs, how: Comparison) -> Float[Array, "n n"]:
    mesh, chosen = how.mesh, SIMILARITIES[how.similarity]
    text = constrain(pairs.text, mesh, BATCH_AXES)
    clips = constrain(chosen.summarise(pairs.frames, pairs.mask), mesh, BATCH_AXES)
    if mesh is not None and mesh.size > 1:
        # A TPU's compiler would hide the gather behind the vision tower, in fusions that cannot
        # write in place: a quarter more memory (ViT-B/32) for the time of a small array.
        text, clips = jax.lax.optimization_barrier((text, clips))
        text = _everywhere(text, mesh)
    return chosen.compare(text, clips, how.temperature)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _everywhere(rows: Float[Array, "n c"], mesh: Mesh) -> Float[Array, "n c"]:
    """Sharded rows with a copy on every device; of their gradient a device gets its rows.

    The transpose of a constraint is the constraint, which asks for the whole sum on every device:
    an all-reduce where a reduce-scatter will do.
    """
    return constrain(rows, mesh, ())


def _everywhere_forward(rows: Float[Array, "n c"], mesh: Mesh) -> tuple[Float[Array, "n c"], None]:
    return _everywhere(rows, mesh), None


def _everywhere_backward(
    mesh: Mesh, _: None, gradient: Float[Array, "n c"]
) -> tuple[Float[Array, "n c"]]:
    return (constrain(gradient, mesh, BATCH_AXES),)


_everywhere.defvjp(_everywhere_forward, _everywhere_backward)


def in_batch_accuracy(
    logits: Float[Array, "n n"], item: Int[Array, " n"]
) -> dict[str, Float[Array, ""]]:
    """Share of texts whose best clip shows their own item, and of clips; for progress only.

    By argmax, so a model that collapsed to equal logits scores 1 / n.
    """
    hit = {
        "t2v_accuracy": item[jnp.argmax(logits, axis=1)] == item,
        "v2t_accuracy": item[jnp.argmax(logits, axis=0)] == item,
    }
    return {name: jnp.mean(value.astype(jnp.float32)) for name, value in hit.items()}
