"""Text-media retrieval with two towers: the loss of a batch, and what evaluation compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from uniadapter_jax.backbones.two_towers import TwoTowers
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import row_keys, split
from uniadapter_jax.common.types import Array, Bool, Float, Int
from uniadapter_jax.tasks.base import Batch, Loss, Setting, Stateless
from uniadapter_jax.tasks.retrieval import losses, scoring
from uniadapter_jax.tasks.retrieval.ring_loss import ring_retrieval_loss, ring_sigmoid_loss


class LossForm(NamedTuple):
    """A function of the features of a batch; `biased`: the backbone's bias is an argument."""

    function: Callable[..., Loss]
    biased: bool


# dense: n x n logits, cut by rows; sigmoid likewise. ring, sigmoid_ring: the same up to rounding,
# from blocks of logits, never all.
LOSSES: Mapping[str, LossForm] = {
    "dense": LossForm(losses.retrieval_loss, biased=False),
    "ring": LossForm(ring_retrieval_loss, biased=False),
    "sigmoid": LossForm(losses.sigmoid_loss, biased=True),
    "sigmoid_ring": LossForm(ring_sigmoid_loss, biased=True),
}


class Features(NamedTuple):
    """Raw features of a batch, which the loss compares; a clip may have several texts."""

    text: Float[Array, "b *t c"]
    frames: Float[Array, "b f c"]


@dataclasses.dataclass(frozen=True)
class Retrieval(Stateless):
    """Symmetric contrastive training, and evaluation in both directions.

    options: `config.task`.
    mesh: what the batch is cut over; None means a single device.
    """

    families: ClassVar[tuple[str, ...]] = ("clip", "siglip")
    options: Any
    mesh: Mesh | None

    def loss(self, model: TwoTowers, batch: Batch, key: Array | None, given: Any = None) -> Loss:
        """The loss of a global batch {frames, frame_mask, text, item} and its metrics.

        With c captions of each clip, "text" being "b c l", it is that of the b c pairs, in which
        each clip stands c times; but it is encoded once. Where the batch has them, known_frames
        (in place of frames) and known_text are what the model's methods of these names gave.
        """
        keys = None if key is None else row_keys(key, jnp.arange(len(batch["item"])))
        return self.loss_of_features(model, self.features(model, batch, keys), batch, key, given)

    def features(self, model: TwoTowers, batch: Batch, keys: Array | None) -> Features:
        """Features of the rows; none depends on another row. `keys` are those of the rows."""
        of_text, of_frames = (None, None) if keys is None else split(keys, 2)
        return Features(
            encode_captions(model, batch["text"], of_text, batch.get("known_text")),
            model.encode_frames(
                batch.get("frames"),
                mask=batch["frame_mask"],
                key=of_frames,
                known=batch.get("known_frames"),
            ),
        )

    def loss_of_features(
        self,
        model: TwoTowers,
        features: Features,
        batch: Batch,
        key: Array | None = None,
        given: Any = None,
    ) -> Loss:
        """The loss of a global batch whose features are known; nothing more is drawn."""
        form = LOSSES[self.options.loss]
        bias = (model.logit_bias[...],) if form.biased else ()
        pairs = losses.Pairs(*features, batch["frame_mask"], batch["item"])
        if features.text.ndim == 3:
            pairs = losses.with_each_caption(pairs, self.mesh)
        options = self.options
        how = losses.Comparison(
            options.similarity, options.temperature, options.duplicates, self.mesh
        )
        return form.function(pairs, model.logit_scale[...], *bias, how)

    def encode_clips(self, model: TwoTowers, batch: Batch) -> Float[Array, "b f c"]:
        """Raw features of every frame."""
        return model.encode_frames(batch["frames"], mask=batch["frame_mask"])

    def encode_texts(self, model: TwoTowers, batch: Batch) -> Float[Array, "b c"]:
        """Raw features."""
        return model.encode_text(batch["text"])

    def similarity(
        self,
        text: Float[np.ndarray, "n c"],
        clips: Float[np.ndarray, "m f c"],
        mask: Bool[np.ndarray, "m f"],
    ) -> Float[np.ndarray, "n m"]:
        """Cosines of all texts and clips, from their features."""
        return scoring.score(
            text,
            clips,
            mask,
            similarity=self.options.similarity,
            temperature=self.options.temperature,
        )


def encode_captions(
    model: TwoTowers,
    ids: Int[Array, "b *t l"],
    keys: Array | None,
    known: Float[Array, "b *t ..."] | None = None,
) -> Float[Array, "b *t c"]:
    """Raw features of the caption of each row, or of several; `keys` are those of the rows."""
    if ids.ndim == 2:
        return model.encode_text(ids, key=keys, known=known)
    if keys is not None:
        keys = split(keys, ids.shape[1]).swapaxes(0, 1).reshape(-1)
    known = None if known is None else known.reshape(-1, *known.shape[2:])
    features = model.encode_text(ids.reshape(-1, ids.shape[-1]), key=keys, known=known)
    return features.reshape(*ids.shape[:2], -1)


def make(setting: Setting) -> Retrieval:
    """The task; raises `UserError` for a loss that the backbone has no bias for."""
    loss = setting.options.loss
    if LOSSES[loss].biased and not setting.model_config.has_logit_bias:
        known = ", ".join(name for name, form in LOSSES.items() if not form.biased)
        raise UserError(
            f"config.task.loss={loss!r} needs a backbone with a bias of its logits (SigLIP), and "
            f"this one has none; choose one of {known}"
        )
    return Retrieval(setting.options, setting.mesh)
