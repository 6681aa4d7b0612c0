"""The base of the models for inference: options, texts to ids, batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar

import numpy as np

from uniadapter_jax.adapters.partition import Partition
from uniadapter_jax.common.distinct import distinct_rows
from uniadapter_jax.common.types import Float, Int
from uniadapter_jax.data.tokenizers.caption_text import TextRule
from uniadapter_jax.data.tokenizers.clip import Tokenizer
from uniadapter_jax.inference import arguments
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

    def usual_options(self) -> dict[str, Any]:
        """The options of `task` with their defaults."""
        raise NotImplementedError  # each family has its own

    def read_ids(self, value: Any) -> Int[np.ndarray, "n l"]:
        """Rows of ids that this family reads; raises `UserError` for others."""
        raise NotImplementedError  # each family has its own

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
    ) -> Float[np.ndarray, "n c"]:
        """A compiled function's features of rows; equal rows have equal features, to the bit.

        A batch that is not full repeats rows up to the next power of two, so that few programs are
        compiled. `prepare` is called with the first rows of each batch before that.
        """
        same = distinct_rows(*rows)
        rows = tuple(same.take(x) for x in rows)
        features = np.empty((len(rows[0]), self.config.embed), np.float32)
        for start in range(0, len(features), self.batch_size):
            first, *others = (x[start : start + self.batch_size] for x in rows)
            parts = [first if prepare is None else prepare(first), *others]
            count = len(first)
            size = min(1 << (count - 1).bit_length(), self.batch_size)
            padded = [np.resize(x, (size, *x.shape[1:])) for x in parts]
            result = function(self.partition.trainable, self.partition.frozen, *padded)
            features[start : start + count] = np.asarray(result)[:count]
        return same.spread(features)
