"""Text-media retrieval with CLIP: the loss of a batch, and what evaluation compares."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from uniadapter_jax.backbones.clip import CLIP
from uniadapter_jax.common.randomness import row_keys, split
from uniadapter_jax.common.types import Array, Bool, Float
from uniadapter_jax.tasks.base import Batch, Loss, Setting, Stateless
from uniadapter_jax.tasks.retrieval import losses, scoring
from uniadapter_jax.tasks.retrieval.ring_loss import ring_retrieval_loss

# Equal up to rounding. dense: n x n logits, cut by rows. ring: blocks of them, never all.
LOSSES = {"dense": losses.retrieval_loss, "ring": ring_retrieval_loss}


class Features(NamedTuple):
    """What the loss sees of a batch: raw features."""

    text: Float[Array, "b c"]
    frames: Float[Array, "b f c"]


@dataclasses.dataclass(frozen=True)
class Retrieval(Stateless):
    """Symmetric contrastive training, and evaluation in both directions.

    options: `config.task`.
    mesh: what the batch is cut over; None knows of one device.
    """

    family: ClassVar[str] = "clip"
    options: Any
    mesh: Mesh | None

    def loss(self, model: CLIP, batch: Batch, key: Array | None, given: Any = None) -> Loss:
        """The loss of a global batch {frames, frame_mask, text, item} and its metrics."""
        keys = None if key is None else row_keys(key, jnp.arange(len(batch["item"])))
        return self.loss_of_features(model, self.features(model, batch, keys), batch, key, given)

    def features(self, model: CLIP, batch: Batch, keys: Array | None) -> Features:
        """Of each row alone, whatever rows are beside it; `keys` are those of the rows."""
        of_text, of_frames = (None, None) if keys is None else split(keys, 2)
        return Features(
            model.encode_text(batch["text"], key=of_text),
            model.encode_frames(batch["frames"], key=of_frames),
        )

    def loss_of_features(
        self,
        model: CLIP,
        features: Features,
        batch: Batch,
        key: Array | None = None,
        given: Any = None,
    ) -> Loss:
        """The loss of a global batch whose features are known; nothing more is drawn."""
        return LOSSES[self.options.loss](
            features.text,
            features.frames,
            batch["frame_mask"],
            batch["item"],
            model.logit_scale[...],
            similarity=self.options.similarity,
            temperature=self.options.temperature,
            duplicates=self.options.duplicates,
            mesh=self.mesh,
        )

    def encode_clips(self, model: CLIP, batch: Batch) -> Float[Array, "b f c"]:
        """Raw features of every frame."""
        return model.encode_frames(batch["frames"])

    def encode_texts(self, model: CLIP, batch: Batch) -> Float[Array, "b c"]:
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


def make(setting: Setting) -> Retrieval:
    return Retrieval(setting.options, setting.mesh)
