"""A backbone of two towers, adapted or not, as functions from pixels and strings.

model = uniadapter_jax.load_model("backbone/", "adapter/")
frames = model.encode_frames(pixels)                # uint8 [N, H, W, 3]
text = model.encode_text(["a cat jumps on a chair"])
cosines = model.similarity(text, frames.reshape(clips, -1, frames.shape[-1]))
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uniadapter_jax.backbones.clip import CLIPConfig
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Bool, Float, Int, Shaped
from uniadapter_jax.config import base_config
from uniadapter_jax.data import images
from uniadapter_jax.data.loading.frames import RESIZES
from uniadapter_jax.inference import arguments
from uniadapter_jax.inference.adapted import AdaptedBackbone, Texts
from uniadapter_jax.tasks.retrieval import scoring
from uniadapter_jax.tasks.retrieval.similarity import SIMILARITIES
from uniadapter_jax.weights.families import family_of

_TASK = ("similarity", "temperature")
_AS_IS = {"preprocess": "none", "max_words": 0}  # tokenizers clean texts as the family does


class AdaptedModel(AdaptedBackbone):
    """A CLIP or SigLIP, adapted or not; `task` has similarity, temperature and words."""

    families = ("clip", "siglip")
    kind = "retrieval"
    bos = "BOS"

    def __init__(self, part: Any, *args: Any, **options: Any):
        super().__init__(part, *args, **options)
        self._images = jax.jit(lambda t, f, x: part.merge(t, f).encode_images(x))
        self._clips = jax.jit(lambda t, f, x, m: part.merge(t, f).encode_frames(x, mask=m))
        self._joins = part.merge(part.trainable, part.frozen).vision.joins_frames
        self._text = jax.jit(lambda t, f, x: part.merge(t, f).encode_text(x))

    def usual_options(self) -> dict[str, Any]:
        defaults = base_config().task
        kept = {name: defaults[name] for name in _TASK}
        size = {"words": self.config.positions, "resize": family_of(self.config).resize}
        return {**kept, **size, **_AS_IS}

    def read_ids(self, value: Any) -> Int[np.ndarray, "n l"]:
        return clip_ids(value, "texts", self.config).astype(np.int32)

    def encode_frames(self, pixels: Shaped[np.ndarray, "N H W 3"]) -> Float[np.ndarray, "N c"]:
        """Raw features (not normalised) of single frames or pictures.

        uint8 pixels of any size are preprocessed as in training: short side resized, middle cut
        out, normalised. Floats are taken as normalised already and must have the model's size.
        Raises `UserError` where the method joins frames: those of a clip belong together.
        """
        if self._joins:
            raise UserError(
                f"encode_frames: method {self.method!r} joins the frames of a clip; use "
                "encode_clips(pixels), of [N, f, H, W, 3], a picture being a clip of one frame"
            )
        if arguments.is_empty(pixels):
            return np.empty((0, self.config.embed), np.float32)
        side, resize = self.config.image_size, RESIZES[self.task["resize"]]
        frames = arguments.pixels_of(pixels, "pixels", "N H W 3", side)
        if frames.dtype != np.uint8:
            return self.batched(self._images, frames)
        resized = functools.partial(images.resized, side=side, resize=resize)
        return self.batched(self._images, frames, prepare=resized)

    def encode_clips(
        self, pixels: Shaped[np.ndarray, "N f H W 3"], mask: Bool[np.ndarray, "N f"] | None = None
    ) -> Float[np.ndarray, "N f c"]:
        """Raw features of the frames of clips, pixels as in `encode_frames`.

        `mask` is False where a clip has ended; features there are zeros.
        """
        pixels = arguments.pixels_of(pixels, "pixels", "N f H W 3", self.config.image_size)
        shape = pixels.shape[:2]
        mask = np.ones(shape, bool) if mask is None else mask
        mask = arguments.mask_of(mask, "mask", "N f", shape)
        features = np.zeros((*shape, self.config.embed), np.float32)
        if not mask.any():
            return features
        if not self._joins:
            features[mask] = self.encode_frames(pixels[mask])
            return features
        side, resize = self.config.image_size, RESIZES[self.task["resize"]]

        def resized(clips: np.ndarray) -> np.ndarray:
            frames = images.resized(clips.reshape(-1, *clips.shape[2:]), side, resize)
            return frames.reshape(*clips.shape[:2], *frames.shape[1:])

        prepare = resized if pixels.dtype == np.uint8 else None
        found = self.batched(self._clips, pixels, mask, prepare=prepare, frames=shape[1])
        return np.where(mask[..., None], found, 0)

    def encode_text(self, texts: Texts) -> Float[np.ndarray, "n c"]:
        """Raw features (not normalised) of strings, or of rows of ids with BOS and EOS.

        Strings are cut at `task["words"]` tokens, EOS kept. Raises `UserError` without a
        tokenizer, or for ids outside the vocabulary, without EOS or, where a tokenizer says which
        it is, without BOS.
        """
        return self.batched(self._text, self.ids_of(texts))

    @property
    def keeps_frames(self) -> bool:
        return SIMILARITIES[self.task["similarity"]].needs_frames

    def media_features(self, pixels: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
        """(Raw features of frames "m f c", those beyond a clip are zeros; their mask)."""
        return self.encode_clips(pixels, mask), mask

    def clip_rows(self, *features: np.ndarray) -> list[Float[np.ndarray, "r c"]]:
        frames, mask = features
        if self.keeps_frames:
            return [clip[there] for clip, there in zip(frames, mask, strict=True)]
        size = 1 << max(len(frames) - 1, 0).bit_length()  # few shapes are compiled
        padded = [np.resize(x, (size, *x.shape[1:])) for x in features]
        pooled = SIMILARITIES[self.task["similarity"]].digest(*map(jnp.asarray, padded))
        return list(np.asarray(pooled)[: len(frames), None])

    def query_rows(self, features: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
        if self.keeps_frames:
            return features
        length = np.linalg.norm(features, axis=1, keepdims=True)
        return features / np.where(length > 0, length, 1)

    def similarity(
        self,
        text: Float[np.ndarray, "n c"],
        frames: Float[np.ndarray, "m f c"],
        mask: Bool[np.ndarray, "m f"] | None = None,
    ) -> Float[np.ndarray, "n m"]:
        """Cosines of texts and clips, from raw features; `mask` is False where a clip has ended.

        Features "m c" are clips of one frame, such as pictures.
        """
        text = arguments.floats(text, "text", "n c")
        frames = arguments.as_array(frames, "frames")
        frames = frames[:, None] if frames.ndim == 2 else frames
        frames = arguments.floats(frames, "frames", "m f c", (None, None, text.shape[1]))
        if not frames.shape[1]:
            raise UserError(f"frames of shape {frames.shape}: clips of no frames")
        if mask is None:
            mask = np.ones(frames.shape[:2], bool)
        mask = arguments.mask_of(mask, "mask", "m f", frames.shape[:2])
        options = {name: self.task[name] for name in _TASK}
        return scoring.score(text, frames, mask, **options)


def clip_ids(value: Any, name: str, config: CLIPConfig) -> Int[np.ndarray, "n l"]:
    """Rows of ids that a CLIP reads; raises `UserError` for others."""
    ids = arguments.integers(value, name, "n l")
    if not 0 < ids.shape[1] <= config.positions:
        raise UserError(f"{name}: rows of {ids.shape[1]} ids, the model reads {config.positions}")
    try:
        config.check_ids(ids)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    return ids
