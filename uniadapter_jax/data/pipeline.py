"""Records to host batches with grain. The position in the data is the global step, nothing else.

Row j of global batch s is the same sample with the same augmentation for any number of hosts,
worker processes and threads; a host builds only its own rows. A batch is one array, filled in place
by threads, and at most `prefetch_mb` of batches wait in buffers beside those being made.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags
from PIL import Image

from uniadapter_jax.data import images, sampling
from uniadapter_jax.data.child import end_with_parent
from uniadapter_jax.data.order import SampleOrder
from uniadapter_jax.data.records import Records
from uniadapter_jax.errors import UserError

ENDLESS = 2**40  # steps

Batch = dict[str, np.ndarray]
Transform = Callable[[Image.Image, np.ndarray], None]
AUGMENTATIONS: dict[str, Any] = {
    "none": None,
    "crop_flip": images.CropFlip,
    "crop_flip_color": images.CropFlipColor,
}


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
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """This host's rows of global batch start_step, start_step + 1, ... without end.

    Args:
      tokenizer: has `encode(texts, length) -> int32 [n length]`.
      data_config: `config.data` (frames, words, captions, augment, workers, threads, prefetch_mb).
      avoid_duplicates: no clip comes twice in a global batch.

    Yields:
      "frames" uint8 [b f H W 3], "frame_mask" bool [b f] (frames beyond the clip's are zeros),
      "text" int32 [b l], "item" int32 [b] (clip index in `records`).
    """
    if data_config.augment not in AUGMENTATIONS:
        raise UserError(
            f"config.data.augment={data_config.augment!r} is not one of {', '.join(AUGMENTATIONS)}"
        )
    order = SampleOrder(
        _counts(records), data_config.captions, global_batch, seed, avoid_duplicates
    )
    workers = data_config.workers
    threads = max(1, data_config.threads // max(1, workers))  # the processes share them out
    loader = TrainLoader(
        reader=FrameReader(records, data_config.frames, image_size, threads),
        rows=_host_rows(global_batch, process_index, process_count),
        order=order,
        tokenizer=tokenizer,
        words=data_config.words,
        augment=data_config.augment,
    )
    batches = grain.MapDataset.range(start_step, start_step + ENDLESS).map(loader)
    buffers = _buffers(loader, data_config)
    return _in_processes(batches, buffers, workers) if workers else _threaded(batches, buffers)


def clip_batches(
    records: Records,
    data_config: Any,
    *,
    image_size: int,
    global_batch: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every clip once, in order, for evaluation; decoded by threads of this process.

    Yields:
      "frames", "frame_mask" as in `train_batches`, "item" int32 [b], "valid" bool [b]. Rows that
      fill up the last batch have valid=False, item=-1, black frames and one real mask entry.
    """
    loader = ClipLoader(
        reader=FrameReader(records, data_config.frames, image_size, data_config.threads),
        rows=_host_rows(global_batch, process_index, process_count),
        batch=global_batch,
    )
    steps = grain.MapDataset.range(-(-len(records) // global_batch))
    return _threaded(steps.map(loader), _buffers(loader, data_config))


@dataclasses.dataclass
class FrameReader:
    """Fills batch arrays with the frames of clips; picklable, so that workers can have it."""

    records: Records
    frames: int
    image_size: int
    threads: int

    def __post_init__(self) -> None:
        for name in ("frames", "image_size", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} should be at least 1, is {getattr(self, name)}")

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @functools.cached_property
    def pool(self) -> concurrent.futures.ThreadPoolExecutor:
        return concurrent.futures.ThreadPoolExecutor(self.threads, "decode")

    def empty(self, rows: int) -> Batch:
        shape = (rows, self.frames, self.image_size, self.image_size, 3)
        return {"frames": np.zeros(shape, np.uint8), "frame_mask": np.zeros(shape[:2], bool)}

    def fill(self, batch: Batch, items: list[int], transforms: list[Transform]) -> None:
        """Decodes clip items[j] into row j of the batch."""
        jobs = range(len(items)), items, transforms
        if self.threads == 1:
            for job in zip(*jobs, strict=True):
                self._fill_row(batch, *job)
        else:
            list(self.pool.map(functools.partial(self._fill_row, batch), *jobs))

    def _fill_row(self, batch: Batch, row: int, item: int, transform: Transform) -> None:
        """Only the frames that are taken are decoded."""
        stored = self.records.read(item).frames
        chosen = sampling.evenly(len(stored), self.frames)
        for place, frame in enumerate(chosen):
            transform(images.decode_jpeg(stored[frame]), batch["frames"][row, place])
        batch["frame_mask"][row, : len(chosen)] = True


@dataclasses.dataclass
class TrainLoader:
    """Step -> this host's rows of the training batch."""

    reader: FrameReader
    rows: range
    order: SampleOrder
    tokenizer: Any
    words: int
    augment: str

    def __call__(self, step: int) -> Batch:
        samples = self.order.rows(int(step))[self.rows.start : self.rows.stop]
        items = self.order.clips[samples]
        captions = self.reader.records.captions
        augmentation = AUGMENTATIONS[self.augment]
        texts: list[str] = []
        transforms: list[Transform] = []
        for row, sample, item in zip(self.rows, samples, items, strict=True):
            rng = self.order.row_rng(int(step), row)
            drawn = int(rng.integers(len(captions[item])))
            fixed = int(self.order.caption[sample])
            texts.append(captions[item][drawn if fixed < 0 else fixed])
            transforms.append(augmentation.draw(rng) if augmentation else images.center_crop)
        batch = self.reader.empty(len(self.rows))
        self.reader.fill(batch, items.tolist(), transforms)
        batch["text"] = np.asarray(self.tokenizer.encode(texts, self.words), np.int32)
        batch["item"] = items.astype(np.int32)
        return batch


@dataclasses.dataclass
class ClipLoader:
    """Step -> this host's rows of the evaluation batch."""

    reader: FrameReader
    rows: range
    batch: int

    def __call__(self, step: int) -> Batch:
        places = int(step) * self.batch + np.asarray(self.rows)
        valid = places < len(self.reader.records)
        items = places[valid].tolist()
        batch = self.reader.empty(len(self.rows))
        self.reader.fill(batch, items, [images.center_crop] * len(items))
        batch["frame_mask"][~valid, 0] = True
        batch["item"] = np.where(valid, places, -1).astype(np.int32)
        batch["valid"] = valid
        return batch


def _counts(records: Records) -> list[int]:
    return [len(captions) for captions in records.captions]


def _host_rows(global_batch: int, process_index: int, process_count: int) -> range:
    if global_batch % process_count:
        raise UserError(f"the global batch {global_batch} does not divide by {process_count} hosts")
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index={process_index} is not below process_count={process_count}")
    size = global_batch // process_count
    return range(process_index * size, (process_index + 1) * size)


class Batches(Iterator[Batch]):
    """An iterator whose threads and processes end with `close`, or with the object."""

    def __init__(self, iterator: Any):
        self._iterator = iterator

    def __next__(self) -> Batch:
        return next(self._iterator)

    def close(self) -> None:
        self._iterator.close()


def _buffers(loader: Any, data_config: Any) -> int:
    """Batches that fit into `prefetch_mb`, at least 1."""
    reader = loader.reader
    batch_bytes = len(loader.rows) * reader.frames * reader.image_size**2 * 3
    return max(1, int(data_config.prefetch_mb * 2**20) // batch_bytes)


def _threaded(batches: grain.MapDataset, buffers: int) -> Batches:
    """Made ahead by one thread, which shares out the rows of a batch among others."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=buffers)
    return Batches(iter(batches.to_iter_dataset(options)))


def _in_processes(batches: grain.MapDataset, buffers: int, workers: int) -> Batches:
    """Made ahead by worker processes. For endless data only: grain 0.2.18 can hang at an end."""
    if not flags.FLAGS.is_parsed():  # grain's workers read absl flags, also where there is no app
        flags.FLAGS.mark_as_parsed()
    # grain keeps two buffers of this size per worker: the worker's own, and one on the way to us
    workers = min(workers, max(1, buffers // 2))
    size = max(1, buffers // (2 * workers))
    here = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(workers, size)
    return Batches(iter(here.mp_prefetch(options, lambda index, count: end_with_parent())))
