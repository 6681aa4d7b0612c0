"""Turns an `Item` into the JPEG frames of a record, by the settings of `config.data.prepare`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from typing import Any

import av
import numpy as np
import PIL
from jaxtyping import Int
from PIL import Image

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.ranges import (
    SHARE,
    Range,
    check_choice,
    check_range,
    check_type,
)
from uniadapter_jax.data import images, sampling
from uniadapter_jax.data.media import kinds as media
from uniadapter_jax.data.media import pictures, video
from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.data.media.video_clock import Times
from uniadapter_jax.data.sources import SOURCES
from uniadapter_jax.data.sources.item import Item

MAX_CLIP_BYTES = 200_000_000  # most bytes of a clip's JPEG frames, which a worker holds at once
CHOICES: Mapping[str, tuple[str, ...]] = {
    "source": tuple(SOURCES),
    "sampling": sampling.SAMPLINGS,
    "shape": ("whole", "square"),
}
RANGES: Mapping[str, Range] = {
    "fps": Range(1e-3, 1e3),
    "frames": Range(1, 10_000),
    "short_side": Range(8, 8192),
    "quality": Range(1, 100),
    "max_bad_share": SHARE,
    "window": Range(0, 1e6),
    "stride": Range(0, 1e6),
}


@dataclasses.dataclass(frozen=True)
class PrepareSettings:
    """`config.data.prepare`, checked.

    Attributes:
      source: name of the annotation layout, a key of `SOURCES`.
      sampling: 'fps', 'uniform' or 'middle'; the first uses `fps`, the others use `frames`.
      short_side: pixels; larger frames are scaled down to it, smaller ones stay.
      quality: quality of the JPEG frames, 1 to 100.
      max_bad_share: share of items without a usable clip above which `prepare` refuses.
      window: seconds of the clips that files are cut into; 0 takes files as they are annotated.
      stride: seconds from the beginning of one to that of the next; 0 is `window`.
      shape: 'whole' stores frames as they are, 'square' the middle that `resize=crop` takes.
    """

    source: str
    sampling: str
    fps: float
    frames: int
    short_side: int
    quality: int
    max_bad_share: float
    window: float = 0.0
    stride: float = 0.0
    shape: str = "whole"

    @classmethod
    def from_config(cls, config: Any) -> PrepareSettings:
        """Settings from a mapping with the attributes' names; a UserError names a wrong value."""
        values = dict(config)
        names = [field.name for field in dataclasses.fields(cls)]
        needed = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        if missing := [name for name in needed if name not in values]:
            raise UserError(f"config.data.prepare has no {missing}; it holds {sorted(values)}")
        settings = cls(**{name: values[name] for name in names if name in values})
        settings.check()
        return settings

    def check(self) -> None:
        kinds = {kind.__name__: kind for kind in (str, int, float)}
        for field in dataclasses.fields(self):
            path, value = f"config.data.prepare.{field.name}", getattr(self, field.name)
            check_type(path, value, kinds[str(field.type)])
            if field.name in CHOICES:
                check_choice(path, value, CHOICES[field.name])
            if field.name in RANGES:
                check_range(path, value, RANGES[field.name])
        if 0 < self.window < 0.1:
            raise UserError(f"config.data.prepare.window={self.window}: 0, or at least 0.1 seconds")
        if 0 < self.stride < 0.1:
            raise UserError(f"config.data.prepare.stride={self.stride}: 0, or at least 0.1 seconds")

    def identity(self) -> dict[str, Any]:
        """The settings that the records depend on, without those that are not used."""
        cut = {"window": self.window, "stride": self.stride or self.window} if self.window else {}
        return {"source": self.source, **self.of_frames(), **cut}

    def of_frames(self) -> dict[str, Any]:
        """The settings that the frames of an item depend on, without those that are not used."""
        used = {"fps": self.fps} if self.sampling == "fps" else {"frames": self.frames}
        shared = {"sampling": self.sampling, "short_side": self.short_side}
        shape = {} if self.shape == "whole" else {"shape": self.shape}
        return {**shared, "quality": self.quality, **used, **shape}


@dataclasses.dataclass(frozen=True)
class Clip:
    """JPEG frames and their times in the clip, in seconds."""

    frames: list[bytes]
    pts: list[float]


def decoder_versions() -> dict[str, str]:
    """The versions of the decoders: two of them may pick different frames for one time."""
    libraries = {name: ".".join(map(str, v)) for name, v in av.library_versions.items()}
    versions = {"av": av.__version__, "libavcodec": libraries["libavcodec"]}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["pillow_heif"] = importlib.metadata.version("pillow_heif")
    return versions | {"pillow": PIL.__version__}


def read_clip(item: Item, root: str, settings: PrepareSettings) -> Clip:
    """Decodes, samples, scales and encodes one item.

    Raises:
      DecodeError: the media file gives no usable clip.
    """
    path = os.path.join(root, item.path)
    keep = _Encoder(settings)
    if (medium := media.identify(path)).kind == "picture":
        return Clip([keep(pictures.read_picture(path, medium))], [0.0])
    choose = functools.partial(stored_frames, settings)
    return Clip(*video.read_frames(path, choose, item.start, item.end, keep))


def read_clips(items: Sequence[Item], root: str, settings: PrepareSettings) -> list[Clip]:
    """The clips of items on one video file, each frame decoded and encoded once.

    Raises:
      DecodeError: one of them gives no clip, or all are too large together; `read_clip` says which.
    """
    path = os.path.join(root, items[0].path)
    if media.identify(path).kind == "picture":
        raise DecodeError("no_video", "a picture")
    choose = functools.partial(stored_frames, settings)
    ranges = [(item.start, item.end) for item in items]
    return [Clip(*clip) for clip in video.read_ranges(path, choose, ranges, _Encoder(settings))]


def stored_frames(settings: PrepareSettings, times: Times) -> Int[np.ndarray, "f"]:
    """The frames of a clip that are stored."""
    count = len(times.stamps)
    if settings.sampling == "fps":
        return sampling.per_second(times.seconds, times.ends, settings.fps, times.slack)
    if settings.sampling == "uniform":
        return sampling.uniform(count, settings.frames)
    return sampling.middle(count, settings.frames)


def encoded(settings: PrepareSettings, picture: Image.Image) -> bytes:
    """A frame as it is stored: shrunk, a JPEG."""
    picture = images.shrink(picture, settings.short_side)
    if settings.shape == "square":
        picture = images.middle_square(picture)
    return images.encode_jpeg(picture, settings.quality)


class _Encoder:
    """Shrinks and encodes the frames of one clip one by one, up to `MAX_CLIP_BYTES`."""

    def __init__(self, settings: PrepareSettings):
        self.settings = settings
        self.size = 0

    def __call__(self, picture: Image.Image) -> bytes:
        data = encoded(self.settings, picture)
        self.size += len(data)
        if self.size > MAX_CLIP_BYTES:
            raise DecodeError(
                "too_large",
                f"its frames take more than {MAX_CLIP_BYTES:,} bytes; fewer fit, by fps or "
                "frames, short_side, or start and end",
            )
        return data
