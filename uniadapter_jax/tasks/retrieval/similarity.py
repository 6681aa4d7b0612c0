"""How alike a text and a clip of frames are: cosines without logit scale, by name.

    q_score         Cross-Modal Adapter's query-scored pooling: each text weighs the raw frames
    mean_pool       mean of the raw frames (Cross-Modal Adapter's code)
    mean_pool_unit  mean of the unit frames (CLIP4Clip)

A similarity has two halves. `summarise` does what concerns clips alone, once per clip; `compare`
meets every text with every clip. Whoever shards puts the one gather between them; whoever scores
in blocks keeps what the first half gave. What a summary holds beside the frames themselves is its
digest, small, so whoever is short of memory can compute it part by part.

q_score pools per pair, p_nm = sum_f s_nmf v_mf, yet no array of texts x clips x width is needed:
<t_n, p_nm> = sum_f s_nmf <t_n, v_mf>, and |p_nm| is the same in coordinates of the clip's own
span, where a frame has at most F numbers instead of C. The Gram matrix G would do that work too,
|p|^2 = s^T G s, but it squares the rounding error: where frames nearly cancel, half of the
digits are lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision

from uniadapter_jax.common.types import Array, Bool, Float

# A pooled vector counts at least as long as this share of its longest frame: frames that cancel
# leave rounding noise, and the direction of noise is no evidence.
SHORTEST = 1e-3
# What is left of a frame below this share of it, after projection, is float32 rounding.
DEPENDENT = 1e-6


class Clips(NamedTuple):
    """Clips as a similarity compares them: its digest and, where it needs them, the frames."""

    digest: Any  # arrays that lead with the axis of clips
    frames: Float[Array, "m f c"] | None  # masked frames may hold anything
    mask: Bool[Array, "m f"] | None


class Span(NamedTuple):
    """q_score's digest."""

    turned: Float[Array, "m g f"]  # column f is frame f in an orthonormal basis of the span
    longest: Float[Array, " m"]  # |v|^2 of the longest frame


@dataclass(frozen=True)
class Similarity:
    """A similarity as its two halves; calling it joins them.

    `summarise(frames "m f c", mask "m f")` gives `Clips`, made of `digest(frames, mask)`;
    `compare(text "n c", clips, temperature)` gives cosines "n m", float32, within [-1, 1] up
    to rounding. A text or a clip without direction (all zero, or all frames masked) has cosine 0
    and gradient 0. Masked frames may hold anything. Features are float32 or bfloat16,
    contractions accumulate in float32.
    """

    digest: Callable[[Array, Array], Any]
    compare: Callable[[Array, Clips, float], Array]
    needs_frames: bool

    def summarise(self, frames: Float[Array, "m f c"], mask: Bool[Array, "m f"]) -> Clips:
        return self.join(self.digest(frames, mask), frames, mask)

    def join(self, digest: Any, frames: Float[Array, "m f c"], mask: Bool[Array, "m f"]) -> Clips:
        """Clips whose digest is known."""
        return Clips(digest, frames, mask) if self.needs_frames else Clips(digest, None, None)

    def __call__(
        self,
        text: Float[Array, "n c"],
        frames: Float[Array, "m f c"],
        mask: Bool[Array, "m f"],
        temperature: float,
    ) -> Float[Array, "n m"]:
        return self.compare(text, self.summarise(frames, mask), temperature)


def _contract(spec: str, left: Array, right: Array) -> Array:
    """An einsum exact to float32 on every device (a TPU's default rounds to bfloat16)."""
    if left.dtype != right.dtype:
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jnp.einsum(
        spec, left, right, precision=Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def _unit(x: Float[Array, "... c"], shortest: Float[Array, "..."]) -> Float[Array, "... c"]:
    """x / max(|x|, sqrt(shortest)); where that is 0 the result and its gradient are 0."""
    x = x.astype(jnp.float32)
    square = jnp.maximum(jnp.sum(x * x, axis=-1), shortest)
    alive = square > 0
    factor = jnp.where(alive, jax.lax.rsqrt(jnp.where(alive, square, 1.0)), 0.0)
    return x * factor[..., None]


def _square(x: Float[Array, "... c"]) -> Float[Array, "..."]:
    wide = x.astype(jnp.float32)
    return jnp.sum(wide * wide, axis=-1)


def _basis(frames: Float[Array, "m f c"]) -> Float[Array, "m f c"]:
    """Orthonormal rows spanning each clip's frames; a frame in the span of earlier ones gives 0.

    Gram-Schmidt with every projection done twice, which is orthogonal to float32 however close
    frames are. A loop, because a TPU takes many times as long to compile a batched QR.
    """

    def add(j: Array, basis: Float[Array, "m f c"]) -> Float[Array, "m f c"]:
        frame = jax.lax.dynamic_index_in_dim(frames, j, axis=1, keepdims=False)
        rest = frame
        for _ in range(2):
            shares = _contract("mgc,mc->mg", basis, rest)
            rest = rest - _contract("mg,mgc->mc", shares, basis)
        square = _square(rest)
        new = square > DEPENDENT**2 * _square(frame)
        scale = jnp.where(new, jax.lax.rsqrt(jnp.where(new, square, 1.0)), 0.0)
        return jax.lax.dynamic_update_index_in_dim(basis, rest * scale[:, None], j, axis=1)

    return jax.lax.fori_loop(0, frames.shape[1], add, jnp.zeros_like(frames))


def _unmasked(frames: Float[Array, "m f c"], mask: Bool[Array, "m f"]) -> Float[Array, "m f c"]:
    """The frames with zeros where they are masked."""
    return jnp.where(mask[..., None], frames, jnp.zeros_like(frames))


def _span(frames: Float[Array, "m f c"], mask: Bool[Array, "m f"]) -> Span:
    frames = _unmasked(frames, mask)
    fixed = jax.lax.stop_gradient(frames).astype(jnp.float32)
    # |B^T p| for a constant orthonormal basis B whose span holds p equals |p|, and its gradient
    # p / |p|. So nothing is differentiated through the basis, which has no derivative where
    # frames repeat.
    turned = _contract("mgc,mfc->mgf", _basis(fixed), frames)
    return Span(turned, jnp.max(_square(fixed), axis=1))


def _weights(
    dots: Float[Array, "m f n"], mask: Bool[Array, "m f"], temperature: float
) -> Float[Array, "m f n"]:
    """Softmax over the unmasked frames; all 0 where none is left."""
    live = mask[..., None]
    peak = jax.lax.stop_gradient(jnp.max(jnp.where(live, dots, -jnp.inf), axis=1, keepdims=True))
    # Masked before exp as well: a masked frame may lie far above the peak, and where none is live
    # the peak is -inf.
    raised = jnp.where(live, jnp.exp(jnp.where(live, dots - peak, 0.0) / temperature), 0.0)
    total = jnp.sum(raised, axis=1, keepdims=True)
    return raised / jnp.where(total > 0, total, 1.0)


def _compare_by_query(
    text: Float[Array, "n c"], clips: Clips, temperature: float
) -> Float[Array, "n m"]:
    span, mask = clips.digest, clips.mask
    assert clips.frames is not None and mask is not None
    # Texts last: the frame axis is short, as minor axis it would be padded to a TPU's 128 lanes.
    dots = _contract("mfc,nc->mfn", _unmasked(clips.frames, mask), text)
    weights = _weights(dots, mask, temperature)
    along = jnp.sum(weights * dots, axis=1)
    pooled = _contract("mgf,mfn->mgn", span.turned, weights)
    shortest = SHORTEST**2 * span.longest[:, None]
    square = jnp.maximum(jnp.sum(pooled * pooled, axis=1), shortest) * _square(text)[None, :]
    alive = ~(square <= 0)  # NaN stays NaN
    cosine = jnp.where(alive, along * jax.lax.rsqrt(jnp.where(alive, square, 1.0)), 0.0)
    # Beyond 1 is rounding, and at its extreme a cosine has gradient 0: that is the clip's too.
    return jnp.clip(cosine, -1.0, 1.0).T


def _mean(frames: Float[Array, "m f c"], mask: Bool[Array, "m f"]) -> Float[Array, "m c"]:
    """One unit vector a clip; a clip without direction is 0."""
    frames = _unmasked(frames, mask).astype(jnp.float32)
    count = jnp.maximum(jnp.sum(mask.astype(jnp.float32), axis=1), 1.0)
    longest = jnp.max(jax.lax.stop_gradient(_square(frames)), axis=1)
    return _unit(jnp.sum(frames, axis=1) / count[:, None], SHORTEST**2 * longest)


def _mean_of_units(frames: Float[Array, "m f c"], mask: Bool[Array, "m f"]) -> Float[Array, "m c"]:
    frames = _unmasked(frames, mask)
    return _mean(_unit(frames, jnp.zeros(frames.shape[:2], jnp.float32)), mask)


def _compare_pooled(
    text: Float[Array, "n c"], clips: Clips, temperature: float
) -> Float[Array, "n m"]:
    del temperature  # only query-scored pooling has one
    unit = _unit(text, jnp.zeros(text.shape[:1], jnp.float32))
    return _contract("nc,mc->nm", unit, clips.digest)


q_score = Similarity(_span, _compare_by_query, needs_frames=True)
mean_pool = Similarity(_mean, _compare_pooled, needs_frames=False)
mean_pool_unit = Similarity(_mean_of_units, _compare_pooled, needs_frames=False)

SIMILARITIES: Mapping[str, Similarity] = MappingProxyType(
    {"q_score": q_score, "mean_pool": mean_pool, "mean_pool_unit": mean_pool_unit}
)
