"""Features of clips and texts, for evaluation: each distinct one is computed once.

Texts of equal ids, and clips whose stored frames are equal, get one row of features, so their
scores tie to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import jax
import numpy as np
from jax.sharding import Mesh

from uniadapter_jax.adapters.partition import Partition
from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.common.distinct import distinct, distinct_rows
from uniadapter_jax.common.types import Array, PyTree
from uniadapter_jax.data.records import Records
from uniadapter_jax.data.tokenizers.caption_text import TextRule
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.parallel.calls import fetched
from uniadapter_jax.parallel.preemption import pass_by
from uniadapter_jax.parallel.progress import Progress
from uniadapter_jax.tasks import needed
from uniadapter_jax.tasks.base import Batch, Subject

TEXTS_PER_CLIP = 8  # a text costs about an eighth of a clip; see config.eval.batch_size


class TwoTower(Protocol):
    """A task that compares clips with texts, as evaluation calls it."""

    def encode_clips(self, model: Any, batch: Batch) -> PyTree: ...

    def encode_texts(self, model: Any, batch: Batch) -> Array: ...

    def similarity(self, text: np.ndarray, clips: Any, mask: np.ndarray) -> np.ndarray: ...


def make_encoders(task: TwoTower, part: Partition, mesh: Mesh) -> tuple[Callable[..., Any], ...]:
    """Compiled (clips, texts): each (trainable, frozen, batch) -> features, whole everywhere.

    Whole on every device, so that every process can read them.
    """

    def frames(trainable: PyTree, frozen: PyTree, batch: Batch) -> PyTree:
        return task.encode_clips(part.merge(trainable, frozen), batch)

    def text(trainable: PyTree, frozen: PyTree, batch: Batch) -> Array:
        return task.encode_texts(part.merge(trainable, frozen), batch)

    everywhere = meshes.replicated(mesh)
    return jax.jit(frames, out_shardings=everywhere), jax.jit(text, out_shardings=everywhere)


class Encoder:
    """The two compiled embedding functions of a run; one compilation for all calls."""

    def __init__(self, subject: Subject):
        self.subject = subject
        task = cast(TwoTower, subject.task)
        self._frames, self._text = make_encoders(task, subject.partition, subject.mesh)

    def _call(self, function: Callable[..., Any], trainable: PyTree, host: Any, size: int) -> Any:
        batch = meshes.put_batch(host, self.subject.mesh, size)
        return function(trainable, self.subject.partition.frozen, batch)

    def clips(self, trainable: PyTree, records: Records) -> tuple[Any, np.ndarray]:
        """The task's features of every clip, such as frames' "m f c", and the mask "m f"."""
        same = distinct(records.contents)
        encoded = self._distinct_clips(trainable, records.subset(same.first))
        features, mask = jax.tree.map(same.spread, encoded)
        return features, mask

    def _distinct_clips(self, trainable: PyTree, records: Records) -> tuple[Any, np.ndarray]:
        e, size, count = self.subject, self.subject.eval_batch, len(records)

        def calls() -> Iterator[tuple[None, PyTree]]:
            for host in e.clip_batches(records):
                batch = {name: host[name] for name in ("frames", "frame_mask")}
                yield None, self._call(self._frames, trainable, batch, size)

        progress, parts = Progress("embedding clips", count, "clips"), []
        for _, features in fetched(calls()):
            parts.append(features)
            pass_by()
            progress.advance(size)
        # Rows beyond the count pad the last batch.
        features = jax.tree.map(lambda *rows: np.concatenate(rows)[:count], *parts)
        return features, needed.frame_masks(records, e.config.data.frames)

    def text_ids(self, captions: list[str]) -> np.ndarray:
        """Ids "n l" of every caption."""
        e = self.subject
        data = e.config.data
        rule = TextRule(data.preprocess, data.max_words)
        ids = e.tokenizer.encode(rule.captions(captions), data.words)
        e.model_config.check_ids(ids)
        return ids

    def texts(self, trainable: PyTree, captions: list[str]) -> np.ndarray:
        """Features "n c" of every caption."""
        return self.ids(trainable, self.text_ids(captions))

    def ids(self, trainable: PyTree, ids: np.ndarray) -> np.ndarray:
        """Features "n c" of rows of ids."""
        same = distinct_rows(ids)
        return same.spread(self._distinct_ids(trainable, same.take(ids)))

    def used_lengths(self, ids: np.ndarray) -> np.ndarray:
        """How many of the ids "n l" of each text its features depend on."""
        method = get_method(self.subject.config.method.name)
        return needed.used_lengths(method, self.subject.model_config, ids)

    def _distinct_ids(self, trainable: PyTree, ids: np.ndarray) -> np.ndarray:
        size = self.subject.eval_batch * TEXTS_PER_CLIP
        mine = meshes.rows_of_process(self.subject.mesh, size)
        used = self.used_lengths(ids)

        def calls() -> Iterator[tuple[np.ndarray, Array]]:
            for rows, length in needed.text_batches(used, ids.shape[1], size):
                filled = rows[np.minimum(mine, len(rows) - 1)]  # the last row fills the last batch
                batch = {"text": ids[filled, :length]}
                yield rows, self._call(self._text, trainable, batch, size)

        parts = list(fetched(calls()))
        features = np.empty((len(ids), *parts[0][1].shape[1:]), parts[0][1].dtype)
        for rows, part in parts:
            features[rows] = part[: len(rows)]
        return features
