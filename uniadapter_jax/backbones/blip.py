"""BLIP: a ViT and a BERT that embeds, matches and answers (Li et al., 2022).

Base and large, in transformers' layout (`BlipForImageTextRetrieval`, `BlipForQuestionAnswering`, or
the parts of both). Epsilons, heads and the ids of [ENC] and [DEC] come from the config; none is
guessed. Pictures are normalised as CLIP's.

    images = model.encode_images(pixels)                       m pictures
    model.image_features(images[:, 0])                         unit vectors, contrastive
    model.text_features(model.encode_text(ids, mask)[:, 0])
    fused = model.fuse(model.fusion_ids(ids), mask, Memory(images))    p texts for each picture
    model.match_logits(fused[:, :, 0])                         no match, match
    model.decode(answer_ids, answer_mask, Memory(question_states, question_mask))
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import lax

from uniadapter_jax.backbones import layers
from uniadapter_jax.backbones.attention import KeysValues
from uniadapter_jax.backbones.bert import Bert, LanguageHead
from uniadapter_jax.backbones.blip_config import ANSWERING, MATCHING, TEMPERATURE, BLIPConfig
from uniadapter_jax.backbones.linear import LayerNorm, Linear, Rng
from uniadapter_jax.backbones.memory import Attended, Memory
from uniadapter_jax.backbones.vit import ViT
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import fold_name
from uniadapter_jax.common.types import Array, Bool, Float, Int

_STD = 0.02


class VisionTower(ViT):
    """Pictures to the states of all tokens, CLS first: ln_post(blocks(patches + positions))."""

    def __init__(self, config: BLIPConfig, remat: str, drop_path: float, *, rng: Rng):
        super().__init__(config, remat, std=_STD, drop_path=drop_path, rng=rng)
        self.ln_post = LayerNorm(config.vision.width, eps=config.vision.eps)

    def head(self, x: Float[Array, "b s d"], key: Array | None) -> Float[Array, "b s d"]:
        return self.ln_post(x)


class BLIP(layers.Backbone):
    """The vision tower, the text transformer, heads, and the home of what a method shares.

    Its towers are "vision", "text" (fusion, too) and "decoder". Beside `adapters` there are the
    places of `layers.Block` in `vision.blocks`, those of `bert` in `text` and `decoder`.

    States have the compute dtype; features, logits and scores are float32.

    Args:
      dropout: BERT's, in use only where a key is passed.
      drop_path: stochastic depth of the last vision layer, likewise; it rises linearly from 0.
    """

    def __init__(
        self,
        config: BLIPConfig,
        *,
        rng: Rng,
        dtype: str = "float32",
        remat: str = "none",
        dropout: float = 0.1,
        drop_path: float = 0.0,
    ):
        super().__init__(config, dtype)

        def bert(attended: int) -> Bert:
            return Bert(
                config.text,
                vocab_size=config.vocab_size,
                positions=config.positions,
                attended=attended,
                remat=remat,
                dropout=dropout,
                std=config.text_std,
                rng=rng,
            )

        def head(width: int, out: int) -> Linear:
            return Linear(width, out, std=_STD, rng=rng)

        has, vision, text = config.matching, config.vision.width, config.text.width
        self.vision = VisionTower(config, remat, drop_path, rng=rng)
        self.text = bert(attended=vision)
        self.temp = nnx.data(nnx.Param(jnp.asarray(TEMPERATURE, jnp.float32)) if has else None)
        self.vision_proj = nnx.data(head(vision, config.embed) if has else None)
        self.text_proj = nnx.data(head(text, config.embed) if has else None)
        self.itm_head = nnx.data(head(text, 2) if has else None)
        # The decoder of answers reads the states of the question.
        self.decoder = nnx.data(bert(attended=text) if config.decoder else None)
        self.decoder_head = nnx.data(
            LanguageHead(config.text, config.vocab_size, std=config.text_std, rng=rng)
            if config.decoder
            else None
        )

    def towers(self) -> tuple[layers.Tower, ...]:
        """Vision, text (in fusion, too) and, if there is one, the decoder, as methods find them."""
        of_text = [("text", self.text), ("decoder", self.decoder)]
        return (
            layers.Tower.of("vision", self.vision, self.config.vision),
            *(
                layers.Tower.of(name, bert, self.config.text)
                for name, bert in of_text
                if bert is not None
            ),
        )

    def encode_images(self, pixels: Array, *, key: Array | None = None) -> Float[Array, "b s d"]:
        """Pictures "b H W 3", uint8 (normalised here) or normalised floats, to all states."""
        shared = self.shared("vision", self.config.vision.layers)
        return self.vision(pixels, dtype=self.dtype, shared=shared, key=key)

    def encode_text(
        self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"] | None, *, key: Array | None = None
    ) -> Float[Array, "b l d"]:
        """Texts alone to all states; `mask` is False where there is padding."""
        shared = self.shared("text", self.config.text.layers)
        key = _fold(key, "alone")
        return self.text(ids, mask, dtype=self.dtype, shared=shared, key=key)

    def image_features(self, cls: Float[Array, "... d"]) -> Float[Array, "... c"]:
        """Unit vectors of CLS states (of a clip: of their mean over frames)."""
        return _unit(self._heads()[0](cls.astype(jnp.float32)))

    def text_features(self, first: Float[Array, "... d"]) -> Float[Array, "... c"]:
        """Unit vectors of the states of texts' first tokens, encoded alone."""
        return _unit(self._heads()[1](first.astype(jnp.float32)))

    def match_logits(self, first: Float[Array, "... d"]) -> Float[Array, "... 2"]:
        """Logits (no match, match) of the states of fused texts' first tokens."""
        return self._heads()[2](first.astype(jnp.float32))

    def _heads(self) -> tuple[Linear, Linear, Linear]:
        if self.vision_proj is None or self.text_proj is None or self.itm_head is None:
            raise UserError(f"this BLIP has no heads for matching, being no {MATCHING}")
        return self.vision_proj, self.text_proj, self.itm_head

    def fusion_ids(self, ids: Int[Array, "... l"]) -> Int[Array, "... l"]:
        """The ids with [ENC] in the place of the first, as BLIP's fusion reads texts."""
        return ids.at[..., 0].set(self.config.enc_id)

    def fuse(
        self,
        ids: Int[Array, "q p l"],
        mask: Bool[Array, "q p l"] | None,
        memory: Memory,
        *,
        key: Array | None = None,
    ) -> Float[Array, "q p l d"]:
        """Texts that attend to pictures: group i of p texts to picture i, or `memory.medium[i]`.

        A picture's keys and values are made once in each layer, whatever p.
        """
        rows, row_mask = _rows(ids, mask)
        shared, key = self.shared("text", self.config.text.layers), _fold(key, "fusion")
        states = self.text(rows, row_mask, dtype=self.dtype, memory=memory, shared=shared, key=key)
        return states.reshape(*ids.shape, -1)

    def decode(
        self,
        ids: Int[Array, "q p l"],
        mask: Bool[Array, "q p l"] | None,
        memory: Memory | Attended,
        *,
        key: Array | None = None,
    ) -> Float[Array, "q p l v"]:
        """Scores of the word after each word of p answers to each of q questions.

        `memory` holds the questions' states as fused with their pictures, and their mask; or it is
        what `attend_to_questions` made of that.

        Raises:
          UserError: this BLIP has no decoder.
        """
        decoder, head = self._decoder()
        rows, row_mask = _rows(ids, mask)
        states = decoder(
            rows,
            row_mask,
            dtype=self.dtype,
            memory=memory,
            causal=True,
            shared=self.shared("decoder", self.config.text.layers),
            key=_fold(key, "decoder"),
        )
        scores = head(states, decoder.token_embedding[...])
        return scores.reshape(*ids.shape, -1)

    def attend_to_questions(self, memory: Memory) -> Attended:
        """The decoder's keys and values of questions, for many answers one after the other."""
        shared = self.shared("decoder", self.config.text.layers)
        return self._decoder()[0].attend_to(memory, shared=shared)

    def no_answers(self, rows: int, length: int) -> KeysValues:
        """An empty past for `decode_next`, for answers of at most `length` tokens with [DEC].

        Raises:
          UserError: no decoder, or one with fewer positions.
        """
        return self._decoder()[0].no_past(rows, length, dtype=self.dtype)

    def decode_next(
        self,
        ids: Int[Array, "q p"],
        at: Int[Array, ""],
        past: KeysValues,
        attended: Attended,
    ) -> tuple[Float[Array, "q p v"], KeysValues]:
        """`decode` one word at a time: scores of what follows the words `ids` at position `at`.

        `past` has the words before; what is returned has these, too.
        """
        decoder, head = self._decoder()
        shared = self.shared("decoder", self.config.text.layers)
        states, past = decoder.step(
            ids.reshape(-1), at, past, attended, dtype=self.dtype, shared=shared
        )
        scores = head(states, decoder.token_embedding[...])
        return scores.reshape(*ids.shape, -1), past

    def _decoder(self) -> tuple[Bert, LanguageHead]:
        if self.decoder is None or self.decoder_head is None:
            raise UserError(f"this BLIP has no decoder of answers, being no {ANSWERING}")
        return self.decoder, self.decoder_head


def _rows(ids: Array, mask: Array | None) -> tuple[Array, Array | None]:
    """Groups of texts "q p l" as rows "b l"."""
    length = ids.shape[-1]
    return ids.reshape(-1, length), None if mask is None else mask.reshape(-1, length)


def _fold(key: Array | None, mode: str) -> Array | None:
    """A key of its own for each mode, so that one key may be passed to all of them."""
    return None if key is None else fold_name(key, mode)


def _unit(x: Float[Array, "... c"]) -> Float[Array, "... c"]:
    """x over its length; zero stays zero."""
    return x * lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))
