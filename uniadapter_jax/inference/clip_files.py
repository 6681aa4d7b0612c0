"""Clips of video and picture files, whole or by windows of seconds, as arrays of pixels.

The way of the pixels is that of training: frames are chosen as `prepare` chooses them, shrunk,
stored as JPEGs of its quality, and read again as loading reads its records. So a file has, to the
bit, the pixels that its record has. Only the frames that loading would take are decoded.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt8

from uniadapter_jax.data import images, sampling
from uniadapter_jax.data.loading.frames import RESIZES
from uniadapter_jax.data.media import kinds, pictures, video
from uniadapter_jax.data.media.video_clock import Times
from uniadapter_jax.data.preparation.clips import encoded, stored_frames
from uniadapter_jax.data.preparation.windows import spans
from uniadapter_jax.inference.clip_options import ClipOptions

GROUP = 256  # clips of a file that are decoded at once, which bounds the memory of long films


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of `seconds` that begin every `stride` seconds, beside the whole file."""

    seconds: float
    stride: float

    def of(self, duration: float) -> list[tuple[float, float]]:
        """(start, end) of each, as `prepare` cuts; none where one would be the whole file."""
        cut = list(spans(duration, self.seconds, self.stride))
        return cut if len(cut) > 1 else []


@dataclasses.dataclass(frozen=True)
class FileClip:
    """The stored frames of a clip; a picture has no times.

    Attributes:
      start, end: seconds of the file.
      whole: whether it is all of the file.
    """

    frames: Sequence[bytes]
    start: float | None = None
    end: float | None = None
    whole: bool = True

    @property
    def place(self) -> tuple[float | None, float | None, bool]:
        return self.start, self.end, self.whole


def read_clips(
    path: str | os.PathLike[str],
    options: ClipOptions,
    windows: Windows | None = None,
    first: int = 0,
) -> tuple[list[FileClip], int]:
    """(At most `GROUP` clips of a file from the number `first` on, how many it has).

    Raises:
      DecodeError: the file is missing, damaged, or gives no clip.
    """
    name = os.fspath(path)
    keep = functools.partial(encoded, options.stored)
    if (medium := kinds.identify(name)).kind == "picture":
        return [FileClip([keep(pictures.read_picture(name, medium))])], 1
    planned = _Planned(options, windows, first)
    jpegs, _ = video.read_frames(name, planned, keep=keep)
    return planned.clips(jpegs), planned.count


def read_range(
    path: str | os.PathLike[str],
    options: ClipOptions,
    start: float | None,
    end: float | None,
) -> FileClip:
    """The clip between two times of a file; None is its beginning, or its end."""
    name = os.fspath(path)
    keep = functools.partial(encoded, options.stored)
    if (medium := kinds.identify(name)).kind == "picture":
        return FileClip([keep(pictures.read_picture(name, medium))])
    jpegs, _ = video.read_frames(name, lambda times: _taken(options, times), start, end, keep)
    return FileClip(jpegs, start, end, start is None and end is None)


def pixels_of(
    clips: Sequence[FileClip], frames: int, side: int, resize: str
) -> tuple[UInt8[np.ndarray, "m f H W 3"], Bool[np.ndarray, "m f"]]:
    """Frames at a model's size, and which there are; the others are zeros."""
    pixels = np.zeros((len(clips), frames, side, side, 3), np.uint8)
    mask = np.zeros((len(clips), frames), bool)
    for row, clip in enumerate(clips):
        for place, jpeg in enumerate(clip.frames):
            images.decode_to(jpeg, pixels[row, place], RESIZES[resize])
        mask[row, : len(clip.frames)] = True
    return pixels, mask


def _taken(options: ClipOptions, times: Times) -> Int[np.ndarray, "k"]:
    """The frames that loading takes of those that `prepare` stores."""
    stored = stored_frames(options.stored, times)
    return stored[sampling.choose(options.sampling, len(stored), options.frames)]


class _Planned:
    """Chooses the frames of several clips of a video at once, so that each is decoded once."""

    def __init__(self, options: ClipOptions, windows: Windows | None, first: int):
        self.options, self.windows, self.first = options, windows, first
        self.count = 0
        self._places: list[tuple[np.ndarray, float, float, bool]] = []

    def __call__(self, times: Times) -> Int[np.ndarray, "k"]:
        # A full decode may ask again, with times that it knows better.
        duration = round(float(times.ends[-1]), 6)
        ranges = [(0.0, duration), *(self.windows.of(duration) if self.windows else ())]
        self.count = len(ranges)
        self._places = []
        for number, (start, end) in list(enumerate(ranges))[self.first : self.first + GROUP]:
            clip, offset = times, 0
            if number:
                clip = times.within(start, end, duration)
                offset = int(np.flatnonzero(times.stamps == clip.stamps[0])[0])
            taken = offset + _taken(self.options, clip)
            self._places.append((taken, start, end, not number))
        self._union = np.unique(np.concatenate([place[0] for place in self._places]))
        return self._union

    def clips(self, jpegs: Sequence[bytes]) -> list[FileClip]:
        """The clips, of the frames that were chosen last."""
        found = []
        for taken, start, end, whole in self._places:
            frames = [jpegs[i] for i in np.searchsorted(self._union, taken)]
            found.append(FileClip(frames, start, end, whole))
        return found


def told(error: kinds.DecodeError) -> str:
    """Why a file gives no clip, for people."""
    return f"{error.reason}: {error.detail}" if error.detail else error.reason
