"""Text-media retrieval: the loss of a batch, and the ranks of every query of a split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from uniadapter_jax import losses, metrics, scoring
from uniadapter_jax.backbones.clip import CLIP
from uniadapter_jax.types import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Symmetric contrastive training, and evaluation in both directions.

    options: `config.task`.
    """

    options: Any
    mesh: Mesh

    def loss(
        self, model: CLIP, batch: Mapping[str, Array], key: Array | None
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
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

    def rank(
        self,
        text: Float[np.ndarray, "n c"],
        frames: Float[np.ndarray, "m f c"],
        mask: Bool[np.ndarray, "m f"],
        text_item: Int[np.ndarray, " n"],
    ) -> dict[str, Any]:
        """Ranks and numbers of tied queries per direction: see `metrics.retrieval_ranks`."""
        similarity = scoring.score(
            text,
            frames,
            mask,
            similarity=self.options.similarity,
            temperature=self.options.temperature,
        )
        return metrics.retrieval_ranks(
            similarity, text_item, v2t=self.options.v2t, ties=self.options.ties
        )
