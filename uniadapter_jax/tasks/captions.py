"""Samples that are captions: what retrieval and matching train on, and are measured by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.loading.batches import Batch
from uniadapter_jax.data.loading.pipeline import steps_per_epoch, train_batches
from uniadapter_jax.data.records import Records


class CaptionSamples:
    """A sample is a clip or picture with one of its captions, or several; see `Samples`."""

    unit = "clips"
    texts: tuple[str, ...] = ("captions",)
    train_texts: tuple[str, ...] = ()

    def steps_per_epoch(self, records: Records, config: ConfigDict) -> int:
        """Whole batches of an epoch; `UserError` where the split fills none."""
        data = config.data
        return steps_per_epoch(
            records, data.captions, config.train.batch_size, data.captions_per_clip
        )

    def train_batches(
        self, records: Records, tokenizer: Any, config: ConfigDict, **options: Any
    ) -> Iterator[Batch]:
        """Host batches without end; `task.duplicates="avoid"` keeps equal clips apart."""
        avoid = config.task.get("duplicates") == "avoid"
        return train_batches(records, tokenizer, config.data, avoid_duplicates=avoid, **options)

    def batch_shapes(self, config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
        """{"text": ids "b l", or "b c l" of c captions a clip}."""
        several = config.data.captions_per_clip
        captions = (several,) if several > 1 else ()
        ids = (config.train.batch_size, *captions, config.data.words)
        return {"text": jax.ShapeDtypeStruct(ids, jnp.int32)}

    def facts(self, config: ConfigDict, train: Records | None) -> Any:
        """Nothing beside the records."""
        return None

    def check_lengths(self, config: ConfigDict, positions: int) -> None:
        """Captions are all that there is, and every task's texts are checked."""

    def check_training(self, config: ConfigDict, train: Records, field: str) -> None:
        """Raises `UserError` for a clip without a caption."""
        for name, captions in zip(train.ids, train.captions, strict=True):
            if not captions:
                raise UserError(
                    f"{field}: clip {name!r} has no caption to train on, in {train.root}; "
                    f"{_without_captions(train)}"
                )

    def check_evaluation(
        self, config: ConfigDict, records: Records, field: str, *, selects: bool
    ) -> None:
        """Raises `UserError` for a split without any caption."""
        if not any(records.captions):
            raise UserError(
                f"{field}: no clip of it has a caption, in {records.root}; "
                f"{_without_captions(records)}"
            )


def _without_captions(records: Records) -> str:
    if sum(records.question_counts):
        return "it has questions: they are for config.task.name='vqa'"
    return "name a split with captions, or prepare it with them"
