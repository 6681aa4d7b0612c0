"""BLIP, adapted or not, as functions from pixels and texts; `load_model` makes it.

clips = model.encode_clips(pixels)           # [N, H, W, 3], or clips of frames [N, f, H, W, 3]
text = model.encode_text(["a cat jumps on a chair"])
cosines = model.similarity(text, clips)      # the first stage of retrieval
logits = model.match(pixels, texts)          # the second: how well text n matches clip m
best = model.answer(pixels, ["what is it?", ...])           # of a BLIP with a decoder
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from uniadapter_jax.backbones.blip import BLIP
from uniadapter_jax.backbones.blip_config import MATCHING, BLIPConfig
from uniadapter_jax.backbones.memory import Memory
from uniadapter_jax.common.distinct import distinct_rows
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Array, Bool, Float, Int, Shaped
from uniadapter_jax.config import base_config
from uniadapter_jax.data import images
from uniadapter_jax.data.answers import check_answers
from uniadapter_jax.data.loading.frames import RESIZES
from uniadapter_jax.inference import arguments
from uniadapter_jax.inference.adapted import AdaptedBackbone, Texts
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.tasks.clip_states import clip_features, encode_clips, frame_features
from uniadapter_jax.tasks.frame_weights import frame_factor
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.tasks.retrieval import scoring
from uniadapter_jax.tasks.vqa.task import Vqa

Pixels = Shaped[np.ndarray, "..."]

_WORDS = 35  # tokens of a text, as released
_FRAME_WEIGHTS = "frame_weights"
_ANSWER_OPTIONS = ("beams", "frame_weights", "generate_mask", "rank_smoothing")
_OF_RUNS = ("inference", "answers", "metric", "top_answers")  # which nothing here reads
_MOST_BEAMS = 256
# As BLIP itself preprocesses.
_DEFAULTS = {"preprocess": "blip", "max_words": 0, "resize": "squash"}


class AdaptedBLIP(AdaptedBackbone):
    """A BLIP, adapted or not.

    Pixels are [N, H, W, 3], or [N, f, H, W, 3] with a mask that is False where a clip has ended:
    uint8 of any size, resized as in training, or normalised floats of the size that the model
    sees. Texts are strings, or rows of ids with [CLS] and [SEP]. `task` has options such as
    frame_weights, and words and answer_words (tokens of a text, of an answer).
    """

    families = ("blip",)
    kind = "vqa"
    bos = "[CLS]"

    def __init__(self, part: Any, *args: Any, **options: Any):
        super().__init__(part, *args, **options)

        def compiled(function: Callable[..., Array]) -> Callable[..., Array]:
            return jax.jit(lambda t, f, *given: function(part.merge(t, f), *given))

        self._clips = compiled(_clip_features)
        self._text = compiled(_text_features)
        # What is read of `task` is an argument, so that it counts from the next call on.
        self._match = jax.jit(
            lambda t, f, *given: _match_logits(part.merge(t, f), *given), static_argnums=5
        )
        self._answers = jax.jit(self._find_answers, static_argnums=(6, 7, 8))

    def usual_options(self) -> dict[str, Any]:
        options = get_task(self.kind).options
        return {
            **_DEFAULTS,
            **{name: value for name, value in options.items() if name not in _OF_RUNS},
            "words": min(_WORDS, self.config.positions),
            "answer_words": base_config(task="vqa").data.answer_words,
        }

    def read_ids(self, value: Any) -> Int[np.ndarray, "n l"]:
        return blip_ids(value, "texts", "n l", self.config)

    def encode_clips(
        self, pixels: Pixels, mask: Bool[np.ndarray, "N f"] | None = None
    ) -> Float[np.ndarray, "N c"]:
        """Unit vectors of clips or pictures."""
        self._needs_heads("encode_clips")
        return self.batched(self._clips, *self._frames(pixels, mask))

    def encode_text(self, texts: Texts) -> Float[np.ndarray, "n c"]:
        """Unit vectors of texts; `UserError` for strings without a tokenizer."""
        self._needs_heads("encode_text")
        return self.batched(self._text, self.ids_of(texts))

    def similarity(
        self, text: Float[np.ndarray, "n c"], clips: Float[np.ndarray, "m c"]
    ) -> Float[np.ndarray, "n m"]:
        """Cosines of all texts and clips, from their unit vectors."""
        texts = arguments.unit_vectors(text, "text", (None, self.config.embed))
        media = arguments.unit_vectors(clips, "clips", (None, self.config.embed))
        return scoring.cosines(texts, media)

    @property
    def keeps_frames(self) -> bool:
        return False

    @property
    def matches(self) -> bool:
        return self.config.matching

    @property
    def answers(self) -> bool:
        return self.config.decoder

    def media_features(self, pixels: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
        """Unit vectors "m c", the only element."""
        return (self.encode_clips(pixels, mask),)

    def clip_rows(self, *features: np.ndarray) -> list[Float[np.ndarray, "r c"]]:
        return list(features[0][:, None])

    def match(
        self, pixels: Pixels, texts: Texts, mask: Bool[np.ndarray, "m f"] | None = None
    ) -> Float[np.ndarray, "n m 2"]:
        """Logits (no match, match) of all texts with all clips, clip by clip."""
        self._needs_heads("match")
        frames, present = self._frames(pixels, mask)
        ids = self.ids_of(texts)
        same = distinct_rows(ids)
        ids = same.take(ids)
        logits = np.empty((len(ids), len(frames), 2), np.float32)
        part, weighted = self.partition, self.task[_FRAME_WEIGHTS]
        for i in range(len(frames) if len(ids) else 0):
            pair = frames[i : i + 1], present[i : i + 1], ids
            logits[:, i] = self._match(part.trainable, part.frozen, *pair, weighted)
        return same.spread(logits)

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
        search. Scores are minus the loss, respectively log p per word. Of no answers none is best.

        Raises:
          UserError: no decoder, an answer that is too long, or not a question for each clip.
        """
        if not self.config.decoder:
            raise UserError("this BLIP has no decoder of answers")
        options = self._answer_options(top, answers is None)
        frames, present = self._frames(pixels, mask)
        asked = arguments.strings(questions, "questions")
        if len(asked) != len(frames):
            raise UserError(f"{len(asked)} questions about {len(frames)} clips: one for each")
        if empty := [i for i, text in enumerate(asked) if not text.strip()]:
            raise UserError(f"questions[{empty[0]}] is empty")
        length = min(self.task["answer_words"], self.config.positions)
        listed = None
        if answers is not None:
            answers = arguments.strings(answers, "answers", single=False)
            if not asked or not answers:
                return [[] for _ in asked]
            listed = check_answers(self.tokenizer, answers, length)
        ids = self.encoded(self.texts.questions(asked))
        part = self.partition
        best_of_each: list[list[tuple[str, float]]] = []
        for row in range(len(ids)):
            asked_now = (frames[row : row + 1], present[row : row + 1], ids[row : row + 1], listed)
            chosen, scores = self._answers(
                part.trainable, part.frozen, *asked_now, top, length, tuple(options.items())
            )
            complete = np.isfinite(scores[0])  # fewer texts than beams
            best = np.asarray(chosen[0])[complete]
            if answers is None:
                texts = cast(Any, self.tokenizer).decode(best)
            else:
                texts = [answers[i] for i in best]
            best_of_each.append(
                list(zip(texts, np.asarray(scores[0])[complete].tolist(), strict=True))
            )
        return best_of_each

    def _answer_options(self, top: int, written: bool) -> dict[str, Any]:
        """The decoder's options, but for those that depend on the list."""
        options = {name: self.task[name] for name in _ANSWER_OPTIONS}
        beams = max(arguments.whole(top, "top", 1), options["beams"])
        if written and beams > _MOST_BEAMS:
            raise UserError(f"the best {beams} texts (top, task.beams): at most {_MOST_BEAMS}")
        if options[_FRAME_WEIGHTS] and not self.config.matching:
            raise UserError("task.frame_weights needs projections, which this BLIP does not have")
        return options | {"top_answers": int(top), "beams": beams}

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
        options: tuple[tuple[str, Any], ...],
    ) -> tuple[Array, Array]:
        model = self.partition.merge(trainable, frozen)
        usual = get_task("vqa").options
        ranked = {"rank_k": 0 if listed is None else len(listed)}
        chosen = ConfigDict({**usual, **dict(options), **ranked})
        task = Vqa(chosen, meshes.one_device(), self.config.pad_id)
        clips = encode_clips(model, frames, present)
        if listed is None:
            return task.generate(model, clips, ids[:, None], length)
        return task.rank(model, clips, ids[:, None], listed)

    def _needs_heads(self, what: str) -> None:
        if not self.config.matching:
            raise UserError(
                f"{what} needs projections and a matching head: a BLIP that is no "
                f"{MATCHING} has none"
            )

    def _frames(self, pixels: Pixels, mask: Any) -> tuple[np.ndarray, np.ndarray]:
        """Frames "N f S S 3" of the model's size and their mask."""
        side = self.config.image_size
        if arguments.is_empty(pixels):
            pixels = np.empty((0, 1, side, side, 3), np.uint8)
        frames = arguments.as_array(pixels, "pixels")
        if frames.ndim == 4:
            arguments.pixels_of(frames, "pixels", "N H W 3", side)
            frames = frames[:, None]
        frames = arguments.pixels_of(frames, "pixels", "N f H W 3", side)
        present = arguments.frame_mask(mask, "mask", *frames.shape[:2])
        if frames.dtype == np.uint8:
            flat = frames.reshape(len(frames) * frames.shape[1], *frames.shape[2:])
            flat = images.resized(flat, side, RESIZES[self.task["resize"]])
            frames = flat.reshape(*frames.shape[:2], *flat.shape[1:])
        return frames, present


def blip_ids(value: Any, name: str, axes: str, config: BLIPConfig) -> Int[np.ndarray, "... l"]:
    """Rows of ids that a BLIP reads, each with a token at least; raises `UserError` for others."""
    ids = arguments.text_ids(value, name, axes, config)
    if (empty := np.argwhere(ids[..., 0] == config.pad_id)).size:
        raise UserError(f"{name}: row {empty[0].tolist()} has no token, padding alone")
    return ids


def _clip_features(model: BLIP, frames: Array, present: Array) -> Array:
    return clip_features(model, encode_clips(model, frames, jnp.asarray(present)))


def _text_features(model: BLIP, ids: Array) -> Array:
    return model.text_features(model.encode_text(ids, ids != model.config.pad_id)[:, 0])


def _match_logits(model: BLIP, frames: Array, present: Array, ids: Array, weighted: bool) -> Array:
    clips, mask = encode_clips(model, frames, present), ids != model.config.pad_id
    memory = Memory(clips.states, clips.mask)
    if weighted:
        text = _text_features(model, ids)
        single = frame_features(model, clips)
        factor = frame_factor(text[None], single, clips.frame_mask, clips.tokens)
        memory = memory._replace(factor=factor)
    fused = model.fuse(model.fusion_ids(ids)[None], mask[None], memory)
    return model.match_logits(fused[0, :, 0])
