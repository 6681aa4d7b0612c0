"""Matching logits of pairs (text, item), as the text transformer gives them in fusion mode.

The states of one batch of items are on every device. A call scores groups of texts, each group with
one item, and devices work on different groups; within a layer keys and values are made once for a
group, and no layer keeps them. So memory is bounded by the batch and by the pairs of a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from uniadapter_jax.adapters.partition import Partition
from uniadapter_jax.backbones.memory import Memory
from uniadapter_jax.common.types import Array, Bool, Float, Float32, Int, Int32, PyTree
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.parallel.calls import fetched
from uniadapter_jax.tasks.clip_states import ClipStates, encode_clips, frame_features
from uniadapter_jax.tasks.frame_weights import frame_factor
from uniadapter_jax.tasks.matching import reranking_plan as plan


class Texts(NamedTuple):
    """All texts: ids, mask (False on padding), and their unit features."""

    ids: Int32[np.ndarray, "n l"]
    mask: Bool[np.ndarray, "n l"]
    features: Float32[np.ndarray, "n c"]


class Media(NamedTuple):
    """A batch of encoded items; `features` of frames only where texts weigh them."""

    clips: ClipStates
    features: Float[Array, "m f c"] | None


class PairScorer:
    """The two compiled functions of a matching model: items to states, groups of pairs to logits.

    `frame_weights`: whether texts weigh the frames of a clip (UniAdapter's frame-aware attention).
    """

    def __init__(self, part: Partition, mesh: Mesh, *, frame_weights: bool):
        self.part, self.mesh, self.frame_weights = part, mesh, frame_weights
        everywhere = meshes.replicated(mesh)
        self.encode_program = jax.jit(self._media, out_shardings=everywhere)
        self.score_program = jax.jit(self._logits, out_shardings=everywhere)

    def _media(self, trainable: PyTree, frozen: PyTree, batch: Mapping[str, Array]) -> Media:
        model = self.part.merge(trainable, frozen)
        clips = encode_clips(model, batch["frames"], batch["frame_mask"])
        weigh = self.frame_weights and clips.frame_mask.shape[1] > 1
        return Media(clips, frame_features(model, clips) if weigh else None)

    def _logits(
        self, trainable: PyTree, frozen: PyTree, media: Media, group: Mapping[str, Array]
    ) -> Float32[Array, "q p"]:
        model = self.part.merge(trainable, frozen)
        # Each device takes the items of its groups from its own copy.
        of_groups = jax.tree.map(lambda x: x[group["place"]], media)
        clips, features = meshes.constrain(of_groups, self.mesh, meshes.BATCH_AXES)
        factor = None
        if features is not None:
            factor = frame_factor(group["features"], features, clips.frame_mask, clips.tokens)
        memory = Memory(clips.states, clips.mask, factor=factor)
        fused = model.fuse(model.fusion_ids(group["ids"]), group["mask"], memory)
        return model.match_logits(fused[:, :, 0])[..., 1]

    def encode(self, trainable: PyTree, host: Mapping[str, np.ndarray], size: int) -> Media:
        """All states of a batch of `size` items, of which `host` has this process' rows."""
        host = {name: host[name] for name in ("frames", "frame_mask")}
        batch = meshes.put_batch(host, self.mesh, size)
        return self.encode_program(trainable, self.part.frozen, batch)

    def shape(self, pairs: plan.Pairs, texts: Texts, media: Media, rows: int) -> plan.Shape:
        """The shape of calls with at most `rows` pairs on a device, for batches like this one."""
        items, tokens, _ = media.clips.states.shape
        return plan.choose_shape(
            pairs,
            plan.used_lengths(texts.mask),
            tokens=tokens,
            rows=rows,
            devices=meshes.batch_shards(self.mesh),
            batch=items,
        )

    def group(
        self, texts: Texts, call: plan.Call, rows: Int[np.ndarray, " b"] | slice = slice(None)
    ) -> dict[str, np.ndarray]:
        """Groups of a call, as `score_program` reads them: those of the `rows`, or all."""
        chosen = call.text[rows]
        group = {
            "place": call.place[rows],
            "ids": texts.ids[chosen, : call.length],
            "mask": texts.mask[chosen, : call.length],
        }
        return group | ({"features": texts.features[chosen]} if self.frame_weights else {})

    def score(
        self, trainable: PyTree, texts: Texts, media: Media, calls: Iterator[plan.Call]
    ) -> Iterator[tuple[Int32[np.ndarray, " w"], Float32[np.ndarray, " w"]]]:
        """(places in `Pairs`, their logits) of each call, on every process."""

        def made() -> Iterator[tuple[np.ndarray, Array]]:
            for call in calls:
                size = len(call.place)
                rows = meshes.rows_of_process(self.mesh, size)
                group = meshes.put_batch(self.group(texts, call, rows), self.mesh, size)
                yield call.pair, self.score_program(trainable, self.part.frozen, media, group)

        for pair, logits in fetched(made()):
            yield pair[pair >= 0], logits[pair >= 0]
