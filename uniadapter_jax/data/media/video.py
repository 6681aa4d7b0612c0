"""Reads the chosen frames of a video file with PyAV (FFmpeg).

Two passes: packet time stamps first, which costs no decoding, then only the groups of pictures that
hold a chosen frame. Where the container gives no usable time stamps, the frames that come out do
not match them, or one of them is broken, a full decode answers instead. Both ways give the same
frames of a sound file.

What FFmpeg decodes is used. Packets that it cannot decode matter where a chosen frame is one of
them, or is made from one.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import av
import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from uniadapter_jax.data.media import video_clock, video_file
from uniadapter_jax.data.media.kinds import DecodeError, check_file
from uniadapter_jax.data.media.video_clock import Choose, Times
from uniadapter_jax.data.media.video_frames import Frames, Shown
from uniadapter_jax.data.media.video_opened import look_through

Keep = Callable[[Image.Image], Any]


def read_frames(
    path: str,
    choose: Choose,
    start: float | None = None,
    end: float | None = None,
    keep: Keep = lambda image: image,
) -> tuple[list[Any], list[float]]:
    """The frames that `choose` takes from the clip, and the seconds of it at which they come.

    One decoded frame is held at a time.

    Args:
      start, end: seconds on the file's clock (see `video_clock`).
      keep: makes what is returned of an upright RGB picture.

    Raises:
      DecodeError: the file is missing, empty, no video, cut short, too large, has nothing on show
        in the range, or a chosen frame is broken.
    """
    return read_ranges(path, choose, [(start, end)], keep)[0]


def read_ranges(
    path: str, choose: Choose, ranges: Sequence[tuple[float | None, float | None]], keep: Keep
) -> list[tuple[list[Any], list[float]]]:
    """What `read_frames` gives for several clips of a file, each frame decoded once.

    Raises:
      DecodeError: as there, for any of them; and where one of several needs a closer look, so that
        they are to be read one by one.
    """
    check_file(path)
    try:
        return _Reader(path, choose, ranges).read(keep)
    except av.error.ArgumentError as error:  # how FFmpeg refuses a format outside FORMATS
        raise DecodeError("unreadable", "not a known video format") from error
    except av.error.EOFError as error:
        raise DecodeError("truncated", "ends before its first frame") from error
    except av.error.FFmpegError as error:
        raise DecodeError("unreadable", error.strerror or type(error).__name__) from error
    except (ValueError, EOFError) as error:
        raise DecodeError("unreadable", str(error)) from error


class _Mismatch(Exception):
    """The packets do not say where the frames are, or one of them needs a closer look."""


def _check_next(shown: Iterator[Shown], entry: Shown) -> None:
    """Raises _Mismatch where `entry` may be made from a broken frame that follows it."""
    while entry.leans:
        following = next(shown, None)
        if following is None:
            return
        if following.broken:
            raise _Mismatch
        entry = following


class _Reader:
    """Reads clips of one file."""

    def __init__(
        self, path: str, choose: Choose, ranges: Sequence[tuple[float | None, float | None]]
    ):
        self.path, self.choose, self.ranges = path, choose, ranges

    def read(self, keep: Keep) -> list[tuple[list[Any], list[float]]]:
        opened = look_through(self.path, remember=len(self.ranges) > 1)
        self.name, self.tick, self.rate = opened.name, opened.tick, opened.rate
        self.packets, self.origin = opened.packets, opened.origin
        if self.packets.indexed:
            stamps = np.union1d(self.packets.stamps, self.packets.lost)
            ends = self.packets.video_end, self.packets.file_end
            chosen = self._choose(stamps, stamps, self.tick, self.origin, *ends)
            for clip in chosen:
                _refuse_lost(clip, np.isin(clip.stamps, self.packets.lost))
            try:
                return _shared_out(self._seek(_stamps(chosen), keep), chosen)
            except _Mismatch as error:  # a full decode knows better
                if len(chosen) > 1:
                    raise DecodeError("damaged", "one of its clips needs a closer look") from error
        return self._decode_all(keep)

    def _choose(
        self,
        stamps: Int[np.ndarray, "f"],
        ticks: Int[np.ndarray, "f"],
        tick: float,
        origin: float | None,
        video_end: float,
        file_end: float,
    ) -> list[Times]:
        """The chosen frames of each clip; see `video_clock.times_of`."""
        times = video_clock.times_of(stamps, ticks, tick, origin, video_end)
        zero = float(ticks[0]) * tick - float(times.seconds[0])
        clips = [times.within(start, end, file_end - zero) for start, end in self.ranges]
        return [clip.take(self.choose(clip)) for clip in clips]

    def _seek(self, wanted: Int[np.ndarray, "k"], keep: Keep) -> dict[int, Any]:
        """Decodes from the key frame before each wanted frame, skipping groups without one."""
        kept: dict[int, Any] = {}
        keys, decoded_at = self.packets.keys, self.packets.keys_decoded
        with video_file.open_file(self.path) as container:
            frames = Frames(container, self._flagged, frozenset(wanted.tolist()))
            shown, last = iter(frames), None
            for stamp in wanted.tolist():
                before = int(np.searchsorted(keys, stamp, side="right")) - 1
                if before > 0 if last is None else before >= 0 and keys[before] > last:
                    if last is not None:
                        _check_next(shown, entry)
                    if not frames.seek(int(keys[before]), int(decoded_at[before])):
                        raise _Mismatch
                    shown = iter(frames)
                for entry in shown:
                    last = entry.frame.pts
                    if last is None or entry.broken:
                        raise _Mismatch
                    if last >= stamp:
                        break
                if last != stamp:
                    raise _Mismatch
                kept[stamp] = keep(frames.picture(entry.frame))
            _check_next(shown, entry)
        return kept

    def _decode_all(self, keep: Keep) -> list[tuple[list[Any], list[float]]]:
        """Two full decodes, one for the times and one for the pixels, so that memory stays small.

        Frames are known by their place; -1 - i is the i-th packet that gave none.
        """
        chosen = self._scan()
        for clip in chosen:
            _refuse_lost(clip, clip.stamps < 0)
        wanted, kept = set(_stamps(chosen).tolist()), {}
        leaning = False  # on a frame that comes next
        with video_file.open_file(self.path) as container:
            frames = Frames(container, self._flagged)
            for i, entry in enumerate(frames):
                if entry.broken and (i in wanted or leaning):
                    raise DecodeError("damaged", f"a broken frame at {entry.frame.time} s")
                leaning = entry.leans and (leaning or i in wanted)
                if i in wanted:
                    kept[i] = keep(frames.picture(entry.frame))
        if len(kept) < len(wanted):
            raise DecodeError("damaged", "two decodes gave different frames")
        return _shared_out(kept, chosen)

    def _scan(self) -> list[Times]:
        """Decodes all for the times of the frames, and of the packets that gave none."""
        stamps, unknown, broken = array.array("q"), 0, set()
        with video_file.open_file(self.path) as container:
            frames = Frames(container, self._flagged)
            for entry in frames:
                unknown += entry.frame.pts is None
                stamps.append(entry.frame.pts or 0)
                if entry.broken:
                    broken.add(stamps[-1])
        if not stamps:
            if frames.failures:
                raise DecodeError("unreadable", f"none of {frames.failures} frames is decoded")
            raise DecodeError("no_frames", "no frame could be decoded")
        places = np.arange(len(stamps))
        lost_places = -1 - np.arange(len(frames.lost))
        at = [place for place, _ in frames.lost]
        if unknown or (self.name == "avi" and not self.packets.indexed):
            places = np.insert(places, at, lost_places)
            count, tick = len(places), 1 / self.rate
            return self._choose(places, np.arange(count), tick, None, count * tick, count * tick)
        if self.packets.indexed:  # decoders may mix up the order after damage
            places = np.argsort(stamps, kind="stable")
            ticks = np.asarray(stamps)[places]
            is_sorted = True
        elif self.packets.decoding_order:
            ticks, is_sorted = np.sort(np.asarray(stamps, np.int64)), True
        else:
            ticks = video_clock.in_a_row(stamps, self.tick, 1 / self.rate, self.name)
            is_sorted = np.array_equal(ticks, np.asarray(stamps))
        ends = self.packets.video_end, self.packets.file_end
        if is_sorted:
            undecoded = {pts for _, pts in frames.lost if pts is not None} | frames.suspects
            late = self._not_shown(undecoded | set(self.packets.lost.tolist()), stamps, broken)
            at, lost_places = np.searchsorted(ticks, late).tolist(), -1 - np.arange(len(late))
        else:
            late = ticks[np.maximum(np.asarray(at, int) - 1, 0)].tolist()
            ends = (float(ticks[-1]) * self.tick + 1 / self.rate,) * 2
        ticks, places = np.insert(ticks, at, late), np.insert(places, at, lost_places)
        return self._choose(places, ticks, self.tick, self.origin, *ends)

    def _not_shown(self, lost: set[int], shown: Sequence[int], broken: set[int]) -> list[int]:
        """Lost frames, with those that a decoder passes over until its next key frame."""
        shown_stamps, lost = set(shown), lost - set(shown)
        before: int | None = None
        for stamp in self.packets.stamps.tolist():
            if stamp not in shown_stamps and (before in lost or before in broken):
                lost.add(stamp)
            before = stamp
        return sorted(lost)

    @property
    def _flagged(self) -> frozenset[int]:
        """Packets of which a part lacks. In joinable formats a wrong counter flags whole ones."""
        return frozenset() if self.name in video_clock.JOINABLE else self.packets.broken


def _stamps(chosen: Sequence[Times]) -> Int[np.ndarray, "k"]:
    return np.unique(np.concatenate([clip.stamps for clip in chosen]))


def _shared_out(
    kept: Mapping[int, Any], chosen: Sequence[Times]
) -> list[tuple[list[Any], list[float]]]:
    """(frames, seconds) of each clip."""
    return [
        (
            [kept[stamp] for stamp in clip.stamps.tolist()],
            [float(t) for t in np.maximum(clip.seconds, 0.0)],
        )
        for clip in chosen
    ]


def _refuse_lost(chosen: Times, lost: Bool[np.ndarray, "k"]) -> None:
    if lost.any():
        seconds = chosen.seconds[lost][0]
        raise DecodeError("damaged", f"the frame at {seconds:.2f} s cannot be decoded")
