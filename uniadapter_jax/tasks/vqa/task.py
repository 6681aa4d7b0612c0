"""Answering questions about pictures and clips (VQA, VideoQA), as UniAdapter trains (section 4).

The question is read in fusion with its clip; the decoder learns all its weighted answers. Released
is the loss of pictures; that of clips, released divided by questions x frames, is divided by
questions here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax.sharding import Mesh

from uniadapter_jax.backbones.blip import BLIP
from uniadapter_jax.backbones.blip_config import ANSWERING, MATCHING, BLIPConfig
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Array, Bool, Float, Int
from uniadapter_jax.tasks.base import Batch, Loss, Setting, Stateless
from uniadapter_jax.tasks.clip_states import ClipStates, encode_clips
from uniadapter_jax.tasks.vqa.answering import generate_answers, rank_answers, read_questions
from uniadapter_jax.tasks.vqa.losses import answer_losses, weighted_loss


@dataclasses.dataclass(frozen=True)
class Vqa(Stateless):
    """See the module. options: `config.task`; pad_id: what fills texts."""

    families: ClassVar[tuple[str, ...]] = ("blip",)
    options: Any
    mesh: Mesh
    pad_id: int

    def loss(self, model: BLIP, batch: Batch, key: Array | None, given: Any = None) -> Loss:
        """The loss of a global batch, and the share of answers that the decoder says itself.

        batch: frames, frame_mask, question "b l", answer "b p a" ([DEC] first, [SEP] last, then
          padding), answer_weight "b p" (0: no answer there).
        """
        clips = encode_clips(model, batch["frames"], batch["frame_mask"], key=key)
        questions = read_questions(
            model,
            clips,
            batch["question"][:, None],
            frame_weights=self.options.frame_weights,
            key=key,
        )
        answer, weight = batch["answer"], batch["answer_weight"]
        words = answer[..., :-1]
        scores = model.decode(words, words != self.pad_id, questions, key=key)
        losses = answer_losses(scores, answer, pad_id=self.pad_id, smoothing=self.options.smoothing)
        said = self._said(scores, answer)
        total = jnp.maximum(jnp.sum(weight), jnp.finfo(jnp.float32).tiny)
        accuracy = jnp.sum(jnp.where(said, weight, 0.0)) / total
        return weighted_loss(losses, weight), {"answer_accuracy": accuracy}

    def _said(
        self, scores: Float[Array, "b p l v"], answer: Int[Array, "b p a"]
    ) -> Bool[Array, "b p"]:
        """Whether every word of an answer is the likeliest after those before it."""
        target = answer[..., 1:]
        likeliest = jnp.argmax(scores, axis=-1).astype(target.dtype)
        return jnp.all((likeliest == target) | (target == self.pad_id), axis=-1)

    def encode_clips(self, model: BLIP, batch: Batch) -> ClipStates:
        """The memory that questions about clips attend to."""
        return encode_clips(model, batch["frames"], batch["frame_mask"])

    def rank(
        self,
        model: BLIP,
        clips: ClipStates,
        ids: Int[Array, "m p l"],
        candidates: Int[Array, "n a"],
    ) -> tuple[Int[Array, "q c"], Float[Array, "q c"]]:
        """The `top_answers` best candidates of p questions about each clip, q = m p; scores."""
        questions = self._read(model, clips, ids)
        return rank_answers(
            model,
            questions,
            candidates,
            k=self.options.rank_k,
            top=self.options.top_answers,
            smoothing=self.options.rank_smoothing,
            parts=self.mesh.size,
        )

    def generate(
        self, model: BLIP, clips: ClipStates, ids: Int[Array, "m p l"], length: int
    ) -> tuple[Int[Array, "q c a"], Float[Array, "q c"]]:
        """The `top_answers` best texts of at most `length` tokens, at most `beams`; scores."""
        questions = self._read(model, clips, ids)
        if self.options.generate_mask == "released":
            questions = questions._replace(mask=None)
        words, scores = generate_answers(model, questions, beams=self.options.beams, length=length)
        top = self.options.top_answers
        return words[:, :top], scores[:, :top]

    def _read(self, model: BLIP, clips: ClipStates, ids: Array) -> Any:
        return read_questions(model, clips, ids, frame_weights=self.options.frame_weights)


def make(setting: Setting) -> Vqa:
    options, config = setting.options, setting.model_config
    check(options, config)
    return Vqa(options, setting.mesh, config.pad_id)


def check(options: Any, config: BLIPConfig) -> None:
    """Raises `UserError` for options out of range, and for a BLIP that lacks what they need."""
    if not config.decoder:
        raise UserError(f"task.name='vqa' needs a decoder: a BLIP that is a {ANSWERING}")
    if options.frame_weights and not config.matching:
        raise UserError(
            "config.task.frame_weights compares questions with frames, for which this BLIP has no "
            f"projections: it is no {MATCHING} as well. Set it to False, or take such a backbone"
        )
    for name in ("rank_k", "beams", "top_answers"):
        if options[name] < 1:
            raise UserError(f"config.task.{name}={options[name]}: at least 1")
    for name in ("smoothing", "rank_smoothing"):
        if not 0.0 <= options[name] < 1.0:
            raise UserError(f"config.task.{name}={options[name]}: at least 0, below 1")
