"""Retrieval with BLIP: contrast (ITC) and match (ITM), as UniAdapter trains (section 3.3).

Loss = ITC + ITM. ITM sees for every pair i of the global batch

    text i with its own clip, text i with a hard negative clip, a hard negative text with clip i

Negatives are drawn over the global batch, the same for any number of devices. Texts and clips stay
on their devices; of other devices' clips only the vision tower's states travel, and only of those
that were drawn; their keys and values are made where they are used, once per layer and clip.

Momentum is an average of the trainables alone: the backbone is frozen, so a second one would hold
the same numbers. Its features carry no dropout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from uniadapter_jax.backbones.blip import BLIP
from uniadapter_jax.backbones.memory import Memory, Sets
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import fold_name, row_keys
from uniadapter_jax.common.types import Array, Bool, Float, Int, PyTree, Shaped
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.parallel.ring import fetch_rows
from uniadapter_jax.tasks.base import Batch, Loss, Setting
from uniadapter_jax.tasks.clip_states import ClipStates, clip_features, encode_clips, frame_features
from uniadapter_jax.tasks.frame_weights import frame_factor
from uniadapter_jax.tasks.matching import losses
from uniadapter_jax.tasks.matching.losses import Momentum, Queue
from uniadapter_jax.tasks.retrieval import scoring


class Given(NamedTuple):
    """Momentum's view of a step: features of its batch, the queue before it, their weight."""

    momentum: Momentum
    queue: Queue | None
    alpha: Float[Array, ""]


class Features(NamedTuple):
    """States of the clips' tokens and unit vectors of the texts, which the loss reads."""

    states: Float[Array, "b t d"]
    text: Float[Array, "b c"]


class Negatives(NamedTuple):
    """For every pair a clip and a text of another item, and whether there is one."""

    clip: Int[Array, " n"]
    clip_exists: Bool[Array, " n"]
    text: Int[Array, " n"]
    text_exists: Bool[Array, " n"]


@dataclasses.dataclass(frozen=True)
class Matching:
    """See the module.

    Attributes:
      options: `config.task`.
      embed: width of the joint embedding.
      batch_size: pairs of the global batch.
      ramp_steps: steps over which momentum's targets gain their weight: the first epoch.
      pad_id: what fills texts.
    """

    families: ClassVar[tuple[str, ...]] = ("blip",)
    options: Any
    mesh: Mesh
    embed: int
    batch_size: int
    ramp_steps: int
    pad_id: int

    # -- what lives from step to step ---------------------------------------------------------

    def init_state(self, trainable: PyTree) -> PyTree:
        """The averaged trainables, which start as a copy, and an empty queue."""
        if not self.options.momentum:
            return {}
        state: dict[str, Any] = {"averaged": jax.tree.map(jnp.copy, trainable)}
        if self.options.queue:
            state["queue"] = losses.empty_queue(self.options.queue, self.embed, self.batch_size)
        return state

    def state_shardings(self, state: PyTree) -> PyTree:
        """Averages everywhere; the queue everywhere, or its entries cut over the devices."""
        everywhere = meshes.replicated(self.mesh)
        shardings = jax.tree.map(lambda _: everywhere, state)
        if "queue" in state and self.options.queue_sharding == "sharded":
            rows = meshes.batch_sharding(self.mesh)
            parts: tuple[Any, ...] = (rows, rows, rows, everywhere)
            shardings["queue"] = Queue(*parts)
        return shardings

    def begin(
        self,
        state: PyTree,
        trainable: PyTree,
        merge: Callable[[PyTree], BLIP],
        batch: Batch,
        step: Array,
    ) -> tuple[Given | None, PyTree]:
        """The order of a step: average, momentum's features; the queue is written last."""
        if not state:
            return None, state
        averaged = losses.average(state["averaged"], trainable, self.options.momentum)
        model = merge(averaged)
        states, text = self.features(model, batch, None)
        momentum = Momentum(clip_features(model, ClipStates(states, batch["frame_mask"])), text)
        queue = state.get("queue")
        alpha = losses.ramp(self.options.alpha, step, self.ramp_steps)
        following = {"averaged": averaged}
        if queue is not None:
            following["queue"] = losses.enqueue(queue, momentum, batch["item"])
        return Given(momentum, queue, alpha), following

    # -- the loss -------------------------------------------------------------------------------

    def loss(
        self,
        model: BLIP,
        batch: Batch,
        key: Array | None,
        given: Given | None = None,
        negatives: Negatives | None = None,
    ) -> Loss:
        """The loss of a global batch {frames, frame_mask, text, item} and its metrics.

        Without a key nothing is dropped out, and `negatives` must be said, since they are drawn.
        """
        keys = None if key is None else row_keys(key, jnp.arange(len(batch["item"])))
        features = self.features(model, batch, keys)
        return self.loss_of_features(model, features, batch, key, given, negatives)

    def loss_of_features(
        self,
        model: BLIP,
        features: Features,
        batch: Batch,
        key: Array | None,
        given: Given | None = None,
        negatives: Negatives | None = None,
    ) -> Loss:
        """The loss of a global batch whose features are known; pairs are fused here."""
        clips, text = ClipStates(features.states, batch["frame_mask"]), features.text
        clip, item = clip_features(model, clips), batch["item"]
        assert model.temp is not None
        temperature = model.temp[...]
        itc = losses.itc_loss(
            clip,
            text,
            item,
            temperature,
            momentum=None if given is None else given.momentum,
            queue=None if given is None else given.queue,
            alpha=0.0 if given is None else given.alpha,
            beside_queue=self._beside_queue,
        )
        if negatives is None:
            hard = self.options.negatives == "hard"
            like = (clip, text) if hard else (jnp.zeros_like(clip), jnp.zeros_like(text))
            negatives = draw_negatives(key, *like, item, temperature)
        logits = self._match(model, clips, text, batch["text"], self._mask(batch), negatives, key)
        pairs = len(item)
        matching = jnp.arange(3 * pairs) % 3 == 0
        counts = _rows(jnp.ones(pairs, bool), negatives.clip_exists, negatives.text_exists)
        itm = losses.itm_loss(logits, matching, counts)
        right = jnp.where(counts, (logits[:, 1] > logits[:, 0]) == matching, False)
        accuracy = right.sum(dtype=jnp.float32) / counts.sum(dtype=jnp.float32)
        return itc + itm, {"itc": itc, "itm": itm, "itm_accuracy": accuracy}

    def _beside_queue(self, x: Array) -> Array:
        if self.options.queue_sharding == "sharded":
            return meshes.constrain(x, self.mesh, ())
        return x

    def features(self, model: BLIP, batch: Batch, keys: Array | None) -> Features:
        """Features of the rows; none depends on another row. `keys` are those of the rows."""
        clips = encode_clips(model, batch["frames"], batch["frame_mask"], key=keys)
        states = model.encode_text(batch["text"], self._mask(batch), key=keys)
        return Features(clips.states, model.text_features(states[:, 0]))

    def _mask(self, batch: Batch) -> Bool[Array, "b l"]:
        return batch["text"] != self.pad_id

    def _match(
        self,
        model: BLIP,
        clips: ClipStates,
        text: Float[Array, "n c"],
        ids: Int[Array, "n l"],
        mask: Bool[Array, "n l"],
        negatives: Negatives,
        key: Array | None,
    ) -> Float[Array, "p 2"]:
        """For each pair i the logits of rows 3i, its own, 3i + 1, its text with the negative clip,
        and 3i + 2, its clip with the negative text.

        In this order the rows of a pair lie on its device, and what is drawn for a row does not
        depend on how many devices there are. Media are the clips of all pairs; cut over devices,
        of every pair a set: its own clip and the negative one that its device fetches.
        """
        pairs, parts = len(ids), meshes.batch_shards(self.mesh)
        medium, sets = None, None
        if parts == 1:  # all clips are here already
            own = jnp.arange(pairs, dtype=jnp.int32)
            media, medium = clips, _rows(own, negatives.clip.astype(jnp.int32), own)
        else:
            media = jax.tree.map(_rows, clips, fetch_rows(clips, negatives.clip, self.mesh))
            sets = Sets((0, 1, 0))
        media = meshes.constrain(media, self.mesh, meshes.BATCH_AXES)
        texts = model.fusion_ids(_rows(ids, ids, ids[negatives.text]))
        seen = _rows(mask, mask, mask[negatives.text])
        memory = Memory(media.states, media.mask, medium, sets=sets)
        if self.options.frame_weights:
            frames = memory.of_groups(frame_features(model, media))
            there = memory.of_groups(media.frame_mask)
            about = _rows(text, text, text[negatives.text])
            factor = frame_factor(about[:, None], frames, there, media.tokens)
            memory = memory._replace(factor=factor)
        fused = model.fuse(texts[:, None], seen[:, None], memory, key=key)
        return model.match_logits(fused[:, 0, 0])

    # -- what evaluation compares ---------------------------------------------------------------

    def encode_clips(self, model: BLIP, batch: Batch) -> dict[str, Array]:
        """{"clip": unit vectors "b c", "frames": of single frames "b f c"}."""
        clips = encode_clips(model, batch["frames"], batch["frame_mask"])
        return {"clip": clip_features(model, clips), "frames": frame_features(model, clips)}

    def encode_texts(self, model: BLIP, batch: Batch) -> Float[Array, "b c"]:
        """Unit vectors."""
        states = model.encode_text(batch["text"], batch["text"] != self.pad_id)
        return model.text_features(states[:, 0])

    def similarity(
        self,
        text: Float[np.ndarray, "n c"],
        clips: dict[str, np.ndarray],
        mask: Bool[np.ndarray, "m f"],
    ) -> Float[np.ndarray, "n m"]:
        """Cosines of all texts and clips, from their features: the first stage."""
        return scoring.cosines(text, clips["clip"])


def _rows(*of_pairs: Shaped[Array, "n ..."]) -> Shaped[Array, "p ..."]:
    """Rows of one pair next to each other."""
    return jnp.stack(of_pairs, axis=1).reshape(-1, *of_pairs[0].shape[1:])


def draw_negatives(
    key: Array | None,
    clip: Float[Array, "n c"],
    text: Float[Array, "n c"],
    item: Int[Array, " n"],
    temperature: Float[Array, ""],
) -> Negatives:
    """Hard negatives of both kinds, from the online features (no gradient)."""
    if key is None:
        raise ValueError("negatives are drawn, which needs a key")
    keys = fold_name(key, "negative clips"), fold_name(key, "negative texts")
    return Negatives(
        *losses.hard_negatives(keys[0], text, clip, item, temperature),
        *losses.hard_negatives(keys[1], clip, text, item, temperature),
    )


def make(setting: Setting) -> Matching:
    options, config = setting.options, setting.model_config
    if not config.matching:
        raise UserError("task.name='matching' needs a BLIP with heads for matching")
    if options.loss == "ring":
        raise UserError(
            "config.task.loss='ring' is for task retrieval. ITC's candidates are momentum's "
            f"features and a queue of {options.queue}, with a target for each: keep loss='dense'; "
            "queue_sharding='sharded' divides the queue over the devices"
        )
    if not 0.0 <= options.momentum < 1.0:
        raise UserError(f"config.task.momentum={options.momentum}: at least 0 (none), below 1")
    if options.queue < 0 or (options.queue and not options.momentum):
        raise UserError(
            f"config.task.queue={options.queue} with momentum={options.momentum}: a queue holds "
            "momentum's features; set queue to 0, or momentum above 0"
        )
    if options.queue and setting.batch_size:
        losses.check_queue(options.queue, setting.batch_size)
        if options.queue_sharding == "sharded":
            meshes.check_divides(setting.mesh, options.queue, "task.queue")
    return Matching(
        options, setting.mesh, config.embed, setting.batch_size, setting.epoch_steps, config.pad_id
    )
