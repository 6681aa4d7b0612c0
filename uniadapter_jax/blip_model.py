"""BLIP, adapted or not, as functions from pixels and texts; `load_model` makes it.

clips = model.encode_clips(pixels)           # [N, H, W, 3], or clips of frames [N, f, H, W, 3]
text = model.encode_text(["a cat jumps on a chair"])
cosines = model.similarity(text, clips)      # the first stage of retrieval
logits = model.match(pixels, texts)          # the second: how well text n matches clip m
best = model.answer(pixels, ["what is it?", ...])           # of a BLIP with a decoder
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from uniadapter_jax import mesh as meshes
from uniadapter_jax.backbones.blip import BLIP
from uniadapter_jax.backbones.blip_config import BLIPConfig
from uniadapter_jax.backbones.memory import Memory
from uniadapter_jax.clip_states import clip_features, encode_clips, frame_features
from uniadapter_jax.config import base_config
from uniadapter_jax.data import images
from uniadapter_jax.data.answers import check_answers
from uniadapter_jax.data.caption_text import TextRule
from uniadapter_jax.data.frames import RESIZES
from uniadapter_jax.data.text import Tokenizer
from uniadapter_jax.errors import UserError
from uniadapter_jax.frame_weights import frame_factor
from uniadapter_jax.partition import Partition
from uniadapter_jax.tasks import get_task
from uniadapter_jax.tasks.vqa import Vqa
from uniadapter_jax.types import Array, Bool, Float, Int, Shaped

Texts = str | Sequence[str] | Int[np.ndarray, "n l"]
Pixels = Shaped[np.ndarray, "..."]

_WORDS = 35  # tokens of a text, as released
_FRAME_WEIGHTS = "frame_weights"
# As BLIP itself preprocesses.
_DEFAULTS = {"preprocess": "blip", "max_words": 0, "resize": "squash"}


class AdaptedBLIP:
    """A BLIP and the adapter in it, compiled, on one device.

    Pixels are [N, H, W, 3], or [N, f, H, W, 3] with a mask that is False where a clip has ended:
    uint8 of any size, resized as in training, or normalised floats of the size that the model
    sees. Texts are strings, or rows of ids with [CLS] and [SEP].

    Attributes:
      partition: the arrays, apart as trainable and frozen.
      config: the backbone's.
      method: name of the method, `zero_shot` without an adapter.
      fingerprint: the backbone's.
      task: what the adapter remembers of its training: options of `config.task` such as
        frame_weights, and words and answer_words (tokens of a text, of an answer), preprocess,
        max_words and resize of `config.data`.
    """

    def __init__(
        self,
        part: Partition,
        config: BLIPConfig,
        tokenizer: Tokenizer,
        *,
        method: str,
        fingerprint: str,
        task: Mapping[str, Any],
        batch_size: int,
    ):
        self.partition = part
        self.config = config
        self.tokenizer = tokenizer
        self.method = method
        self.fingerprint = fingerprint
        lengths = {
            "words": min(_WORDS, config.positions),
            "answer_words": base_config(task="vqa").data.answer_words,
        }
        self.task = {**_DEFAULTS, **get_task("vqa").options, **lengths, **task}
        self.texts = TextRule(self.task["preprocess"], self.task["max_words"])
        self.batch_size = batch_size

        def compiled(function: Callable[..., Array]) -> Callable[..., Array]:
            return jax.jit(lambda t, f, *given: function(part.merge(t, f), *given))

        self._clips = compiled(_clip_features)
        self._text = compiled(self._text_features)
        self._match = compiled(self._match_logits)
        self._answers = jax.jit(self._find_answers, static_argnums=(6, 7))

    def encode_clips(
        self, pixels: Pixels, mask: Bool[np.ndarray, "N f"] | None = None
    ) -> Float[np.ndarray, "N c"]:
        """Unit vectors of clips or pictures."""
        return self._batched(self._clips, *self._frames(pixels, mask))

    def encode_text(self, texts: Texts) -> Float[np.ndarray, "n c"]:
        """Unit vectors of texts; `UserError` for strings without a tokenizer."""
        return self._batched(self._text, self._ids(texts))

    def similarity(
        self, text: Float[np.ndarray, "n c"], clips: Float[np.ndarray, "m c"]
    ) -> Float[np.ndarray, "n m"]:
        """Cosines of all texts and clips."""
        return np.asarray(text) @ np.asarray(clips).T

    def match(
        self, pixels: Pixels, texts: Texts, mask: Bool[np.ndarray, "m f"] | None = None
    ) -> Float[np.ndarray, "n m 2"]:
        """Logits (no match, match) of all texts with all clips, clip by clip."""
        frames, present = self._frames(pixels, mask)
        ids = self._ids(texts)
        part = self.partition
        columns = [
            self._match(part.trainable, part.frozen, clip[None], there[None], ids)
            for clip, there in zip(frames, present, strict=True)
        ]
        return np.stack([np.asarray(column) for column in columns], axis=1)

    def answer(
        self,
        pixels: Pixels,
        questions: Sequence[str],
        answers: Sequence[str] | None = None,
        mask: Bool[np.ndarray, "m f"] | None = None,
        top: int = 1,
    ) -> list[list[tuple[str, float]]]:
        """The `top` best answers to question i about clip i, best first, with their scores.

        Of `answers`, ranked as in evaluation with all of them; without a list, written by beam
        search. Scores are minus the loss, respectively log p per word.

        Raises:
          UserError: no decoder, an answer that is too long, or not a question for each clip.
        """
        if not self.config.decoder:
            raise UserError("this BLIP has no decoder of answers")
        frames, present = self._frames(pixels, mask)
        if len(questions) != len(frames):
            raise UserError(f"{len(questions)} questions about {len(frames)} clips: one for each")
        ids = self._ids(np.asarray(self._encode(self.texts.questions(questions))))
        length = min(self.task["answer_words"], self.config.positions)
        listed = None if answers is None else check_answers(self.tokenizer, answers, length)
        part = self.partition
        found: list[list[tuple[str, float]]] = []
        for row in range(len(ids)):
            given = (frames[row : row + 1], present[row : row + 1], ids[row : row + 1], listed)
            chosen, scores = self._answers(part.trainable, part.frozen, *given, top, length)
            there = np.isfinite(scores[0])  # fewer texts than beams
            best = np.asarray(chosen[0])[there]
            if answers is None:
                texts = cast(Any, self.tokenizer).decode(best)
            else:
                texts = [answers[i] for i in best]
            found.append(list(zip(texts, np.asarray(scores[0])[there].tolist(), strict=True)))
        return found

    def _find_answers(
        self,
        trainable: Any,
        frozen: Any,
        frames: Array,
        present: Array,
        ids: Array,
        listed: Array | None,
        top: int,
        length: int,
    ) -> tuple[Array, Array]:
        model = self.partition.merge(trainable, frozen)
        beams = max(top, self.task["beams"])
        own = {"top_answers": top, "beams": beams, "rank_k": 0 if listed is None else len(listed)}
        task = Vqa(ConfigDict({**self.task, **own}), meshes.one_device(), self.config.pad_id)
        clips = encode_clips(model, frames, present)
        if listed is None:
            return task.generate(model, clips, ids[:, None], length)
        return task.rank(model, clips, ids[:, None], listed)

    def _text_features(self, model: BLIP, ids: Array) -> Array:
        return model.text_features(model.encode_text(ids, ids != self.config.pad_id)[:, 0])

    def _match_logits(self, model: BLIP, frames: Array, present: Array, ids: Array) -> Array:
        clips, mask = encode_clips(model, frames, present), ids != self.config.pad_id
        memory = Memory(clips.states, clips.mask)
        if self.task[_FRAME_WEIGHTS]:
            text = self._text_features(model, ids)
            single = frame_features(model, clips)
            factor = frame_factor(text[None], single, clips.frame_mask, clips.tokens)
            memory = memory._replace(factor=factor)
        fused = model.fuse(model.fusion_ids(ids)[None], mask[None], memory)
        return model.match_logits(fused[0, :, 0])

    def _frames(self, pixels: Pixels, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        pixels, side = np.asarray(pixels), self.config.image_size
        if pixels.ndim == 4:
            pixels = pixels[:, None]
        if pixels.dtype == np.uint8 and pixels.ndim == 5 and pixels.shape[-1] == 3:
            flat = images.resized(pixels.reshape(-1, *pixels.shape[2:]), side, self._resize)
            pixels = flat.reshape(*pixels.shape[:2], *flat.shape[1:])
        if pixels.ndim != 5 or pixels.shape[2:] != (side, side, 3):
            raise UserError(
                f"pixels of shape {pixels.shape}: the model sees pictures (N, {side}, {side}, 3), "
                f"or clips (N, f, {side}, {side}, 3)"
            )
        present = np.ones(pixels.shape[:2], bool) if mask is None else np.asarray(mask, bool)
        return pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32), present

    def _ids(self, texts: Texts) -> np.ndarray:
        if isinstance(texts, np.ndarray | jax.Array):
            ids = np.asarray(texts, np.int32)
            if ids.ndim != 2 or ids.min() < 0 or ids.max() >= self.config.vocab_size:
                raise UserError(
                    f"ids of shape {ids.shape} from {ids.min()} to {ids.max()}: (n, l) below "
                    f"{self.config.vocab_size} are meant"
                )
            return ids
        strings = [texts] if isinstance(texts, str) else list(texts)
        return self._encode(self.texts.captions(strings))

    def _encode(self, strings: Sequence[str]) -> np.ndarray:
        return np.asarray(self.tokenizer.encode(strings, self.task["words"]), np.int32)

    @property
    def _resize(self) -> Callable[..., None]:
        return RESIZES[self.task["resize"]]

    def _batched(self, function: Any, *rows: np.ndarray) -> np.ndarray:
        """A last batch that is not full repeats rows, so that one program serves all."""
        count = len(rows[0])
        size, found = min(self.batch_size, max(count, 1)), []
        for start in range(0, count, size):
            part = [np.resize(x[start : start + size], (size, *x.shape[1:])) for x in rows]
            found.append(function(self.partition.trainable, self.partition.frozen, *part))
        if not found:
            return np.empty((0, self.config.embed), np.float32)
        return np.concatenate([np.asarray(x) for x in found])[:count]


def _clip_features(model: BLIP, frames: Array, present: Array) -> Array:
    return clip_features(model, encode_clips(model, frames, jnp.asarray(present)))
