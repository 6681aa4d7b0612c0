"""Text-media retrieval with CLIP: the loss of a batch, and what evaluation compares."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from uniadapter_jax import losses, scoring
from uniadapter_jax.backbones.clip import CLIP
from uniadapter_jax.metrics import DIRECTIONS, SUMMARY, TIES, V2T_RULES
from uniadapter_jax.tasks.base import Batch, Kind, Loss, Setting, Stateless
from uniadapter_jax.types import Array, Bool, Float


@dataclasses.dataclass(frozen=True)
class Retrieval(Stateless):
    """Symmetric contrastive training, and evaluation in both directions.

    options: `config.task`.
    """

    options: Any
    mesh: Mesh

    def loss(self, model: CLIP, batch: Batch, key: Array | None, given: Any = None) -> Loss:
        """The loss of a global batch {frames, frame_mask, text, item} and its metrics."""
        keys = (None, None) if key is None else jax.random.split(key)
        return losses.retrieval_loss(
            model.encode_text(batch["text"], key=keys[0]),
            model.encode_frames(batch["frames"], key=keys[1]),
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


def _make(setting: Setting) -> Retrieval:
    return Retrieval(setting.options, setting.mesh)


KIND = Kind(
    name="retrieval",
    family="clip",
    make=_make,
    options={
        "similarity": "q_score",
        "temperature": 5.0,  # of q_score's softmax over frames
        "duplicates": "negative",  # a clip twice in a batch
        "v2t": "best_caption",  # several captions
        "ties": "optimistic",
    },
    choices={
        "similarity": ("q_score", "mean_pool", "mean_pool_unit"),
        "duplicates": ("negative", "positive", "avoid"),
        "v2t": V2T_RULES,
        "ties": TIES,
    },
    protocol=("similarity", "v2t", "ties"),
    groups=dict.fromkeys(DIRECTIONS, SUMMARY),
    selection_metric="Rsum",
    shown="t2v_accuracy",
)
