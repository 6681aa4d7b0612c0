"""The base of the models for inference: options, texts to ids, batches."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import UInt8

from uniadapter_jax.adapters.partition import Partition
from uniadapter_jax.common.distinct import distinct_rows
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Bool, Float, Int
from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.data.tokenizers.caption_text import TextRule
from uniadapter_jax.data.tokenizers.clip import Tokenizer
from uniadapter_jax.inference import arguments, clip_files
from uniadapter_jax.inference.clip_files import FileClip, told
from uniadapter_jax.inference.clip_options import ClipOptions, clip_options
from uniadapter_jax.inference.options import Options
from uniadapter_jax.tasks.registry import get_task

Texts = str | Sequence[str] | Int[np.ndarray, "n l"]


class AdaptedBackbone:
    """A backbone and the adapter in it, compiled and batched, on one device.

    Attributes:
      partition: the arrays, apart as trainable and frozen.
      config: the backbone's.
      method: name of the method, `zero_shot` without an adapter.
      fingerprint: the backbone's.
      task: what the adapter remembers of its training: options of `config.task`, and of
        `config.data` those that change a text or a picture. What is set counts from the next call
        on.
      clips: how frames are taken out of video files.
      devices: those that batches are dealt out to, each with a copy of the arrays; empty is JAX's
        default device.
      families: names of the families that it serves.
      kind: the task that it remembers options of.
      bos: what begins a text, for people.
    """

    bos: ClassVar[str]
    families: ClassVar[tuple[str, ...]]
    kind: ClassVar[str]

    def __init__(
        self,
        part: Partition,
        config: Any,
        tokenizer: Tokenizer,
        *,
        method: str,
        fingerprint: str,
        task: Mapping[str, Any],
        batch_size: int,
        clips: ClipOptions | None = None,
    ):
        self.partition = part
        self.config = config
        self.tokenizer = tokenizer
        self.method = method
        self.fingerprint = fingerprint
        self.clips = clips or clip_options({}, method, config.image_size)
        self.task: MutableMapping[str, Any] = Options(
            self.usual_options(), get_task(self.kind), task, config.positions
        )
        self.batch_size = arguments.whole(batch_size, "batch_size", 1)
        self.devices: Sequence[jax.Device] = ()
        self._placed: tuple[Any, list[tuple[Any, Any]]] | None = None  # (of what, copies)

    def usual_options(self) -> dict[str, Any]:
        """The options of `task` with their defaults."""
        raise NotImplementedError  # each family has its own

    def read_ids(self, value: Any) -> Int[np.ndarray, "n l"]:
        """Rows of ids that this family reads; raises `UserError` for others."""
        raise NotImplementedError  # each family has its own

    @property
    def keeps_frames(self) -> bool:
        """Whether a clip is compared by the features of its frames, not by one vector."""
        raise NotImplementedError  # each family has its own

    @property
    def matches(self) -> bool:
        """Whether it has `match`, a second look at the best clips."""
        return False

    @property
    def answers(self) -> bool:
        """Whether it has `answer`."""
        return False

    def encode_text(self, texts: Texts) -> Float[np.ndarray, "n c"]:
        """Features of strings, or of rows of ids."""
        raise NotImplementedError  # each family has its own

    def media_features(
        self, pixels: UInt8[np.ndarray, "m f H W 3"], mask: Bool[np.ndarray, "m f"]
    ) -> tuple[np.ndarray, ...]:
        """What `similarity` takes of clips, after the texts."""
        raise NotImplementedError  # each family has its own

    def clip_rows(self, *features: np.ndarray) -> list[Float[np.ndarray, "r c"]]:
        """What has to be kept of each clip to be compared later, of `media_features`.

        One vector, whose product with a query's is the similarity; or, where `keeps_frames`, the
        raw features of the frames.
        """
        raise NotImplementedError  # each family has its own

    def query_rows(self, features: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
        """The same of texts, or of pictures that clips are compared with."""
        return features

    def encode_files(self, paths: Sequence[str | os.PathLike[str]]) -> tuple[np.ndarray, ...]:
        """Features of whole video and picture files, decoded as in training (`clips`).

        They are what `similarity` takes after the texts:
        `model.similarity(text, *model.encode_files(paths))`. Raises `UserError` for a file that
        gives no clip.
        """
        if isinstance(paths, str | bytes | os.PathLike):
            raise UserError(f"paths={paths!r}: a list of paths is meant")
        return self.media_features(*self.pixels_of([self._clip(path) for path in paths]))

    def encode_video(
        self, path: str | os.PathLike[str], start: float | None = None, end: float | None = None
    ) -> Float[np.ndarray, "..."]:
        """Features of a file, or of its seconds from `start` to `end`.

        Raw features "f c" of the frames (CLIP, SigLIP), or one unit vector "c" (BLIP).
        """
        features, *mask = self.media_features(*self.pixels_of([self._clip(path, start, end)]))
        return features[0][mask[0][0]] if mask else features[0]

    def pixels_of(
        self, clips: Sequence[FileClip]
    ) -> tuple[UInt8[np.ndarray, "m f H W 3"], Bool[np.ndarray, "m f"]]:
        """Frames of clips as the model sees them; one each if none has more, so as to save work."""
        longest = max((len(clip.frames) for clip in clips), default=1)
        frames = self.clips.frames if longest > 1 else 1
        return clip_files.pixels_of(clips, frames, self.config.image_size, self.task["resize"])

    def _clip(
        self, path: str | os.PathLike[str], start: float | None = None, end: float | None = None
    ) -> FileClip:
        try:
            return clip_files.read_range(path, self.clips, start, end)
        except DecodeError as error:
            raise UserError(f"{os.fspath(path)!r}: {told(error)}") from error

    @property
    def texts(self) -> TextRule:
        """The rule by which strings are cleaned before they are cut into tokens."""
        return TextRule(self.task["preprocess"], self.task["max_words"])

    def ids_of(self, texts: Texts) -> Int[np.ndarray, "n l"]:
        """Rows of ids of captions, or the rows that were given; `UserError` if they cannot be."""
        if arguments.are_strings(texts):
            return self.encoded(self.texts.captions(arguments.strings(texts, "texts")))
        ids = self.read_ids(texts)
        if self.tokenizer.bos_id >= 0:
            every = np.ones(len(ids), bool)
            arguments.check_begin(ids, every, "texts", self.tokenizer.bos_id, self.bos)
        return ids

    def encoded(self, strings: Sequence[str]) -> Int[np.ndarray, "n l"]:
        """Rows of ids of strings as they are, cut at `task["words"]` tokens with EOS kept."""
        words = self.task["words"]
        if not strings:
            return np.empty((0, words), np.int32)
        ids = np.asarray(self.tokenizer.encode(strings, words), np.int32)
        self.config.check_ids(ids)
        return ids

    def batched(
        self,
        function: Callable[..., Any],
        *rows: np.ndarray,
        prepare: Callable[[np.ndarray], np.ndarray] | None = None,
        frames: int = 0,
    ) -> Float[np.ndarray, "n *f c"]:
        """A compiled function's features of rows; equal rows have equal features, to the bit.

        A batch that is not full repeats rows up to the next power of two, so that few programs are
        compiled. `prepare` is called with the first rows of each batch before that. Rows are clips
        where they have `frames`, each of which gets features; fewer of them make a batch.
        """
        same = distinct_rows(*rows)
        rows = tuple(same.take(x) for x in rows)
        of_row = (frames, self.config.embed) if frames else (self.config.embed,)
        features = np.empty((len(rows[0]), *of_row), np.float32)
        most = max(1, self.batch_size // max(1, frames))
        copies = self._copies()
        under_way: collections.deque[tuple[int, int, Any]] = collections.deque()

        def finish() -> None:
            start, count, result = under_way.popleft()
            features[start : start + count] = np.asarray(result)[:count]

        for turn, start in enumerate(range(0, len(features), most)):
            first, *others = (x[start : start + most] for x in rows)
            parts = [first if prepare is None else prepare(first), *others]
            count = len(first)
            size = min(1 << (count - 1).bit_length(), most)
            padded = [np.resize(x, (size, *x.shape[1:])) for x in parts]
            under_way.append((start, count, function(*copies[turn % len(copies)], *padded)))
            if len(under_way) == len(copies):
                finish()
        while under_way:
            finish()
        return same.spread(features)

    def _copies(self) -> list[tuple[Any, Any]]:
        """The trained and the frozen arrays on each of the devices."""
        arrays = self.partition.trainable, self.partition.frozen
        if len(self.devices) < 2:
            return [arrays]
        if self._placed is None or self._placed[0] is not arrays[0]:
            copies = [jax.device_put(arrays, device) for device in self.devices]
            self._placed = arrays[0], copies
        return self._placed[1]
