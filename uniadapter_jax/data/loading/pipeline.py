"""Records to host batches of clips and captions. The position in the data is the global step.

Row j of global batch s is the same sample with the same augmentation for any number of hosts,
worker processes and threads; a host builds only the rows that it supplies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

from uniadapter_jax.data.loading.batches import (
    Batch,
    Reader,
    chosen_rows,
    decoding_threads,
    endless,
    finite,
    threads_of_worker,
)
from uniadapter_jax.data.loading.frames import FrameReader
from uniadapter_jax.data.loading.known import KnownFrames, known_texts
from uniadapter_jax.data.loading.order import SampleOrder
from uniadapter_jax.data.prefix_cache import PrefixCache
from uniadapter_jax.data.records import Records
from uniadapter_jax.data.tokenizers.caption_text import TextRule


def steps_per_epoch(records: Records, captions: str, global_batch: int, together: int = 1) -> int:
    """Whole batches in an epoch: floor(samples / batch), at least 1 (else UserError)."""
    counts = _counts(records)
    return SampleOrder(counts, captions, global_batch, seed=0, together=together).steps


def train_batches(
    records: Records,
    tokenizer: Any,
    data_config: Any,
    *,
    global_batch: int,
    seed: int,
    avoid_duplicates: bool = False,
    known: PrefixCache | None = None,
    **placing: Any,
) -> Iterator[Batch]:
    """Pairs of a clip and a caption, without end; `placing` are options of `sample_batches`.

    Args:
      tokenizer: has `encode(texts, length) -> int32 [n length]`.
      data_config: `config.data` (frames, words, captions, augment, ...).
      avoid_duplicates: no clip comes twice in a global batch.
      known: a cache of all these records. Then there are no frames, but "known_frames" [b f ...]
        and "known_text" [b ...].

    Yields:
      What `sample_batches` does, and "text" int32 [b l], or [b c l] of c captions of each clip.
    """
    captions, together = data_config.captions, data_config.captions_per_clip
    order = SampleOrder(_counts(records), captions, global_batch, seed, avoid_duplicates, together)
    texts = Texts.from_config(tokenizer, data_config)
    captions_of_clips = Captions(order, records, texts, known)
    return sample_batches(captions_of_clips, data_config, known=known, **placing)


class Samples(Protocol):
    """What a training run draws: texts, each about a clip. Picklable."""

    @property
    def order(self) -> SampleOrder: ...

    @property
    def records(self) -> Records: ...

    @property
    def clips(self) -> Int[np.ndarray, " n"]:
        """The clip of each sample."""

    def columns(self, samples: Int[np.ndarray, " b"], rngs: Sequence[np.random.Generator]) -> Batch:
        """The arrays of a batch that are made of texts; the rows' generators come first here."""


def sample_batches(
    samples: Samples,
    data_config: Any,
    *,
    image_size: int,
    start_step: int = 0,
    rows: Int[np.ndarray, " b"] | None = None,
    known: PrefixCache | None = None,
) -> Iterator[Batch]:
    """These rows of global batch start_step, start_step + 1, ... without end.

    `rows` are those of each global batch to make, in this order; None: all.

    Yields:
      "frames" uint8 [b f H W 3], "frame_mask" bool [b f] (frames beyond the clip's are zeros),
      "item" int32 [b] (clip index in the records), and the columns of the samples.
    """
    reader: Reader
    if known is None:
        threads = threads_of_worker(data_config)
        reader = FrameReader.from_config(samples.records, data_config, image_size, threads)
    else:
        reader = KnownFrames(known, data_config.frames)
    loader = TrainLoader(
        reader=reader,
        rows=chosen_rows(samples.order.batch, rows),
        samples=samples,
    )
    return endless(loader, data_config, start_step)


def clip_batches(
    records: Records,
    data_config: Any,
    *,
    image_size: int,
    global_batch: int,
    rows: Int[np.ndarray, " b"] | None = None,
) -> Iterator[Batch]:
    """Every clip once, in order, for evaluation; decoded by threads of this process.

    `rows` are those of each global batch to make, in this order; None: all.

    Yields:
      "frames", "frame_mask" as in `train_batches`, "item" int32 [b], "valid" bool [b]. Rows that
      fill up the last batch have valid=False, item=-1, black frames and one real mask entry.
    """
    loader = ClipLoader(
        reader=FrameReader.from_config(
            records, data_config, image_size, decoding_threads(data_config)
        ),
        rows=chosen_rows(global_batch, rows),
        batch=global_batch,
    )
    return finite(loader, data_config, -(-len(records) // global_batch))


@dataclasses.dataclass(frozen=True)
class Texts:
    """How texts become tokens."""

    tokenizer: Any
    words: int
    rule: TextRule

    @classmethod
    def from_config(cls, tokenizer: Any, data_config: Any) -> Texts:
        """As `config.data` says."""
        rule = TextRule(data_config.preprocess, data_config.max_words)
        return cls(tokenizer, data_config.words, rule)

    def encode(self, cleaned: list[str]) -> Int[np.ndarray, "n l"]:
        """Token ids of texts that went through `rule`."""
        return np.asarray(self.tokenizer.encode(cleaned, self.words), np.int32)


@dataclasses.dataclass(frozen=True)
class Captions:
    """Samples that are captions; `known` as of `train_batches`."""

    order: SampleOrder
    records: Records
    texts: Texts
    known: PrefixCache | None = None

    @property
    def clips(self) -> Int[np.ndarray, " n"]:
        return self.order.clips

    def columns(self, samples: Int[np.ndarray, " b"], rngs: Sequence[np.random.Generator]) -> Batch:
        """{"text": int32 [b l], or [b c l] where samples have c captions}, and what is known."""
        chosen: list[str] = []
        numbers: list[int] = []
        for rng, sample in zip(rngs, samples.tolist(), strict=True):
            captions = self.records.captions[self.clips[sample]]
            places = self.order.captions(sample, len(captions), rng)
            numbers += np.atleast_1d(places).tolist()
            chosen += [captions[place] for place in numbers[-self.order.together :]]
        columns = {"text": self.texts.encode(self.texts.rule.captions(chosen))}
        together = self.order.together
        if self.known is not None:
            clips = np.repeat(self.clips[samples], together)
            columns["known_text"] = known_texts(self.known, clips, np.array(numbers))
        if together == 1:
            return columns
        return {name: x.reshape(-1, together, *x.shape[1:]) for name, x in columns.items()}


@dataclasses.dataclass
class TrainLoader:
    """Step -> the rows of the training batch."""

    reader: Reader
    rows: Int[np.ndarray, " b"]
    samples: Samples

    def __call__(self, step: int) -> Batch:
        order = self.samples.order
        samples = order.rows(int(step))[self.rows]
        items = self.samples.clips[samples]
        rngs = [order.row_rng(int(step), row) for row in self.rows.tolist()]
        columns = self.samples.columns(samples, rngs)
        batch = self.reader.empty(len(self.rows))
        self.reader.fill(batch, items.tolist(), rngs)
        return {**batch, **columns, "item": items.astype(np.int32)}


@dataclasses.dataclass
class ClipLoader:
    """Step -> the rows of the evaluation batch."""

    reader: FrameReader
    rows: Int[np.ndarray, " b"]
    batch: int

    def __call__(self, step: int) -> Batch:
        places = int(step) * self.batch + self.rows
        valid = places < len(self.reader.records)
        items = places[valid].tolist()
        batch = self.reader.empty(len(self.rows))
        self.reader.fill(batch, items)
        batch["frame_mask"][~valid, 0] = True
        batch["item"] = np.where(valid, places, -1).astype(np.int32)
        batch["valid"] = valid
        return batch


def _counts(records: Records) -> list[int]:
    return [len(captions) for captions in records.captions]
