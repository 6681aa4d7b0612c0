"""From clips to the frames of a batch: which of the stored ones, and what happens to them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data import images, sampling
from uniadapter_jax.data.loading import augment
from uniadapter_jax.data.records import Records

RESIZES: Mapping[str, images.Resize] = {"crop": images.center_crop, "squash": images.squash}
AUGMENTATIONS: Mapping[str, Any] = {  # each draws a transform
    "none": None,
    "crop_flip": images.CropFlip,
    "crop_flip_color": images.CropFlipColor,
    "blip": augment.CropFlipAugment,
}


@dataclasses.dataclass
class FrameReader:
    """Fills batch arrays with the frames of clips; picklable, so that workers can have it.

    Attributes:
      frames: of a row; a clip with fewer is padded.
      image_size: pixels of a side.
      threads: that decode.
      resize, augment, sampling: as in `config.data`. Augmentation and random sampling are for rows
        that come with their own randomness.
    """

    records: Records
    frames: int
    image_size: int
    threads: int
    resize: str = "crop"
    augment: str = "none"
    sampling: str = "evenly"

    @classmethod
    def from_config(
        cls, records: Records, data_config: Any, image_size: int, threads: int
    ) -> FrameReader:
        return cls(
            records,
            data_config.frames,
            image_size,
            threads,
            data_config.resize,
            data_config.augment,
            data_config.sampling,
        )

    def __post_init__(self) -> None:
        for name in ("frames", "image_size", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} should be at least 1, is {getattr(self, name)}")
        known = {"resize": RESIZES, "augment": AUGMENTATIONS, "sampling": sampling.LOADING}
        for name, choices in known.items():
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"config.data.{name}={value!r} is not one of {', '.join(choices)}")

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @property
    def row_bytes(self) -> int:
        """Bytes of the frames of a row."""
        return self.frames * self.image_size**2 * 3

    @functools.cached_property
    def pool(self) -> concurrent.futures.ThreadPoolExecutor:
        return concurrent.futures.ThreadPoolExecutor(self.threads, "decode")

    def empty(self, rows: int) -> dict[str, np.ndarray]:
        """ "frames" uint8 [b f H W 3] and "frame_mask" bool [b f], all zeros."""
        shape = (rows, self.frames, self.image_size, self.image_size, 3)
        return {"frames": np.zeros(shape, np.uint8), "frame_mask": np.zeros(shape[:2], bool)}

    def fill(
        self,
        batch: dict[str, np.ndarray],
        items: Sequence[int],
        rngs: Sequence[np.random.Generator] | None = None,
    ) -> None:
        """Decodes clip items[j] into row j of the batch.

        With `rngs`, one for each row, by the rules of training. Without, by those of evaluation,
        where a clip named twice is decoded once.
        """
        first: dict[int, int] = {}
        for row, item in enumerate(items):
            first.setdefault(item, row)
        rows = list(first.values()) if rngs is None else list(range(len(items)))
        draws = [None] * len(rows) if rngs is None else rngs
        jobs = rows, [items[row] for row in rows], draws
        if self.threads == 1:
            for job in zip(*jobs, strict=True):
                self._fill_row(batch, *job)
        else:
            list(self.pool.map(functools.partial(self._fill_row, batch), *jobs))
        if rngs is None:
            for row, item in enumerate(items):
                if (source := first[item]) != row:
                    for name in ("frames", "frame_mask"):
                        batch[name][row] = batch[name][source]

    def _fill_row(
        self,
        batch: dict[str, np.ndarray],
        row: int,
        item: int,
        rng: np.random.Generator | None,
    ) -> None:
        """Only the frames that are taken are read and decoded."""
        augmented = None
        if rng is not None and self.augment != "none":
            augmented = AUGMENTATIONS[self.augment].draw(rng)
        stored = self.records.frame_counts[item]
        chosen = sampling.choose(self.sampling, stored, self.frames, rng)
        for place, frame in enumerate(self.records.read_frames(item, chosen.tolist())):
            out = batch["frames"][row, place]
            if augmented is None:
                images.decode_to(frame, out, RESIZES[self.resize])
            else:
                augmented(images.decode_pixels(frame), out)
        batch["frame_mask"][row, : len(chosen)] = True
