"""Records to host batches of clips and captions. The position in the data is the global step.

Row j of global batch s is the same sample with the same augmentation for any number of hosts,
worker processes and threads; a host builds only the rows that it supplies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from uniadapter_jax.data.loading.batches import (
    Batch,
    chosen_rows,
    decoding_threads,
    endless,
    finite,
)
from uniadapter_jax.data.loading.frames import FrameReader
from uniadapter_jax.data.loading.order import SampleOrder
from uniadapter_jax.data.records import Records
from uniadapter_jax.data.tokenizers.caption_text import TextRule


def steps_per_epoch(records: Records, captions: str, global_batch: int) -> int:
    """Whole batches in an epoch: floor(samples / batch), at least 1 (else UserError)."""
    return SampleOrder(_counts(records), captions, global_batch, seed=0).steps


def train_batches(
    records: Records,
    tokenizer: Any,
    data_config: Any,
    *,
    image_size: int,
    global_batch: int,
    seed: int,
    start_step: int = 0,
    avoid_duplicates: bool = False,
    rows: Int[np.ndarray, " b"] | None = None,
) -> Iterator[Batch]:
    """These rows of global batch start_step, start_step + 1, ... without end.

    Args:
      tokenizer: has `encode(texts, length) -> int32 [n length]`.
      data_config: `config.data` (frames, words, captions, augment, ...).
      avoid_duplicates: no clip comes twice in a global batch.
      rows: of each global batch those to make, in this order; None: all.

    Yields:
      "frames" uint8 [b f H W 3], "frame_mask" bool [b f] (frames beyond the clip's are zeros),
      "text" int32 [b l], "item" int32 [b] (clip index in `records`).
    """
    order = SampleOrder(
        _counts(records), data_config.captions, global_batch, seed, avoid_duplicates
    )
    loader = TrainLoader(
        reader=FrameReader.from_config(
            records, data_config, image_size, decoding_threads(data_config)
        ),
        rows=chosen_rows(global_batch, rows),
        order=order,
        tokenizer=tokenizer,
        words=data_config.words,
        rule=TextRule(data_config.preprocess, data_config.max_words),
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
        reader=FrameReader.from_config(records, data_config, image_size, data_config.threads),
        rows=chosen_rows(global_batch, rows),
        batch=global_batch,
    )
    return finite(loader, data_config, -(-len(records) // global_batch))


@dataclasses.dataclass
class TrainLoader:
    """Step -> the rows of the training batch."""

    reader: FrameReader
    rows: Int[np.ndarray, " b"]
    order: SampleOrder
    tokenizer: Any
    words: int
    rule: TextRule

    def __call__(self, step: int) -> Batch:
        samples = self.order.rows(int(step))[self.rows]
        items = self.order.clips[samples]
        captions = self.reader.records.captions
        rngs = [self.order.row_rng(int(step), row) for row in self.rows.tolist()]
        texts: list[str] = []
        for rng, sample, item in zip(rngs, samples, items, strict=True):
            drawn = int(rng.integers(len(captions[item])))
            fixed = int(self.order.caption[sample])
            texts.append(captions[item][drawn if fixed < 0 else fixed])
        batch = self.reader.empty(len(self.rows))
        self.reader.fill(batch, items.tolist(), rngs)
        texts = self.rule.captions(texts)
        batch["text"] = np.asarray(self.tokenizer.encode(texts, self.words), np.int32)
        batch["item"] = items.astype(np.int32)
        return batch


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
