"""The evaluation loop: both sides of a split are embedded once, then compared in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from uniadapter_jax import mesh as meshes
from uniadapter_jax import metrics
from uniadapter_jax.backbones.clip import check_ids
from uniadapter_jax.data.pipeline import clip_batches
from uniadapter_jax.data.records import Records
from uniadapter_jax.errors import UserError
from uniadapter_jax.experiment import Experiment
from uniadapter_jax.partition import Partition
from uniadapter_jax.progress import Progress
from uniadapter_jax.types import Array, PyTree

TEXTS_PER_CLIP = 8  # a text costs about an eighth of a clip; see config.eval.batch_size


def make_encoders(part: Partition, mesh: Mesh) -> tuple[Callable[..., Array], ...]:
    """Compiled (frames, text): each (trainable, frozen, batch) -> raw features, whole everywhere.

    Whole on every device, so that every process can read them.
    """

    def frames(trainable: PyTree, frozen: PyTree, batch: Mapping[str, Array]) -> Array:
        return part.merge(trainable, frozen).encode_frames(batch["frames"])

    def text(trainable: PyTree, frozen: PyTree, batch: Mapping[str, Array]) -> Array:
        return part.merge(trainable, frozen).encode_text(batch["text"])

    everywhere = meshes.replicated(mesh)
    return jax.jit(frames, out_shardings=everywhere), jax.jit(text, out_shardings=everywhere)


class Encoder:
    """The two compiled embedding functions of an experiment; one compilation for all calls."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self._frames, self._text = make_encoders(experiment.partition, experiment.mesh)
        everywhere = meshes.replicated(experiment.mesh)
        self._whole = jax.jit(lambda rows: rows, out_shardings=everywhere)

    def _run(self, function: Callable[..., Array], trainable: PyTree, host: Any) -> np.ndarray:
        batch = meshes.put_batch(host, self.experiment.mesh)
        return meshes.fetch(function(trainable, self.experiment.partition.frozen, batch))

    def clips(self, trainable: PyTree, records: Records) -> tuple[np.ndarray, np.ndarray]:
        """Raw frame features "m f c" and mask "m f" of every clip, in the records' order."""
        e = self.experiment
        size = e.eval_batch
        progress = Progress("embedding clips", len(records), "clips")
        parts, masks = [], []
        batches = clip_batches(
            records,
            e.config.data,
            image_size=e.model_config.image_size,
            global_batch=size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        for host in batches:
            parts.append(self._run(self._frames, trainable, {"frames": host["frames"]}))
            mask = meshes.put_batch({"mask": host["frame_mask"]}, e.mesh)["mask"]
            masks.append(meshes.fetch(self._whole(mask)))
            progress.advance(size)
        count = len(records)  # rows beyond it pad the last batch
        return np.concatenate(parts)[:count], np.concatenate(masks)[:count]

    def texts(self, trainable: PyTree, captions: list[str]) -> np.ndarray:
        """Raw features "n c" of every caption."""
        e = self.experiment
        ids = e.tokenizer.encode(captions, e.config.data.words)
        check_ids(ids, e.model_config)
        size = e.eval_batch * TEXTS_PER_CLIP
        parts = [self._run(self._text, trainable, {"text": rows}) for rows in _own_rows(ids, size)]
        return np.concatenate(parts)[: len(ids)]


def _own_rows(ids: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """This process' rows of each global batch; the last is padded with its last row."""
    share = size // jax.process_count()
    first = jax.process_index() * share
    for start in range(0, len(ids), size):
        rows = np.minimum(np.arange(start, start + size), len(ids) - 1)
        yield ids[rows[first : first + share]]


def evaluate(encoder: Encoder, trainable: PyTree, records: Records) -> dict[str, Any]:
    """Metrics of one split: {"metrics", "ranks", "query_ids", "tied_queries", "texts", "clips"}.

    Every clip and every caption counts exactly once, on any mesh.

    Raises:
      UserError: features that are not finite; the first clip or caption is named.
    """
    e = encoder.experiment
    captions = [caption for clip in records.captions for caption in clip]
    text_item = np.repeat(np.arange(len(records)), [len(clip) for clip in records.captions])
    frames, mask = encoder.clips(trainable, records)
    text = encoder.texts(trainable, captions)
    text_ids = [
        f"{clip}#{j}"
        for clip, own in zip(records.ids, records.captions, strict=True)
        for j in range(len(own))
    ]
    _check_finite(frames, records.ids)
    _check_finite(text, text_ids)
    found = e.task.rank(text, frames, mask, text_item)
    ranks = {way: found[way] for way in ("t2v", "v2t")}
    return {
        "metrics": {way: metrics.summarize(of) for way, of in ranks.items()},
        "ranks": {way: of.tolist() for way, of in ranks.items()},
        "query_ids": {
            "t2v": text_ids,
            "v2t": [records.ids[i] for i in metrics.clips_with_text(text_item)],
        },
        "tied_queries": found["tied_queries"],
        "texts": len(captions),
        "clips": len(records),
    }


def _check_finite(features: np.ndarray, names: list[str]) -> None:
    """A similarity may hide a NaN; scores of 0 would tie, and ties count as hits."""
    bad = ~np.isfinite(features).all(axis=tuple(range(1, features.ndim)))
    if bad.any():
        raise UserError(
            f"the features of {names[int(np.argmax(bad))]} and {int(bad.sum()) - 1} more are not "
            "finite, so ranks would mean nothing. Look for NaN in the weights"
        )


def selection_value(found: Mapping[str, Mapping[str, float]], name: str) -> float:
    """Rsum (R@1 + R@5 + R@10 of both directions), or one metric such as `t2v/R@1`."""
    if name == "Rsum":
        return float(sum(found[way][f"R@{k}"] for way in ("t2v", "v2t") for k in (1, 5, 10)))
    way, _, metric = name.partition("/")
    value = float(found[way][metric])
    return -value if metric in ("MdR", "MnR") else value
