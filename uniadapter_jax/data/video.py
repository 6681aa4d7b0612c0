"""Reads the chosen frames of a video file with PyAV (FFmpeg).

Two passes: packet time stamps first, which costs no decoding, then only the groups of pictures that
hold a chosen frame. Where the container gives no usable time stamps, or the frames that come out do
not match them, one full decode answers instead. Both ways give the same frames of a sound file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import av
import numpy as np
from jaxtyping import Int
from PIL import Image

from uniadapter_jax.data.media import DecodeError, check_file

# Demuxers that read one file's own bytes. Playlists and scripts, which would make FFmpeg open other
# files or addresses, and formats that show any text as a picture are not among them.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,live_flv,gif,apng,ogg,asf,"
    "rm,h264,hevc,av1,obu,ivf,nut,mxf,dv,m4v,mjpeg,yuv4mpegpipe,swf,nsv,wtv,webp_anim"
)
MISSING_SHARE = 0.05  # of the announced length that may lack before a file counts as truncated,
MISSING_SECONDS = 0.5  # or this much, whichever is more

av.logging.set_level(av.logging.PANIC)  # broken files are reported by us, once


@dataclasses.dataclass(frozen=True)
class Times:
    """The frames of a clip: time stamps in units of the stream, seconds, seconds between two."""

    stamps: Int[np.ndarray, "f"]
    seconds: np.ndarray
    period: float

    def within(self, start: float | None, end: float | None) -> Times:
        """Frames on show from `start` until before `end`, seconds counted from `start`."""
        half = 0.5 * self.period
        first = np.searchsorted(self.seconds, (start or 0.0) - half)
        last = len(self.seconds) if end is None else np.searchsorted(self.seconds, end - half)
        seconds = self.seconds[first:last] - (start or 0.0)
        return Times(self.stamps[first:last], seconds, self.period)


Choose = Callable[[Times], Int[np.ndarray, "f"]]  # frames of a clip -> indices, ascending


def read_frames(
    path: str, choose: Choose, start: float | None = None, end: float | None = None
) -> tuple[list[Image.Image], list[float]]:
    """The frames that `choose` takes from the clip, upright RGB, and their seconds in it.

    Raises:
      DecodeError: the file is missing, empty, no video, cut short, or has no frame in the range.
    """
    check_file(path)
    try:
        with _open(path) as container:
            stream = _stream(container)
            try:
                times, keys = _packet_times(container, stream)
                chosen = _choose(times.within(start, end), choose)
                images = _seek_and_decode(path, chosen.stamps, keys)
            except _Unindexed:
                chosen, images = _decode_all(path, choose, start, end)
    except av.error.ArgumentError as error:  # how FFmpeg refuses a format outside FORMATS
        raise DecodeError("unreadable", "not a known video format") from error
    except av.error.EOFError as error:
        raise DecodeError("truncated", "ends before its first frame") from error
    except av.error.FFmpegError as error:
        raise DecodeError("unreadable", error.strerror or type(error).__name__) from error
    except (ValueError, EOFError) as error:
        raise DecodeError("unreadable", str(error)) from error
    return images, [float(t) for t in chosen.seconds]


class _Unindexed(Exception):
    """The packets do not say where the frames are."""


def _open(path: str) -> av.container.InputContainer:
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    return av.open(path, options=options)


def _stream(container: av.container.InputContainer) -> av.VideoStream:
    """The first video stream that is no cover picture. One thread: `prepare` runs many workers."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            stream.thread_type = "NONE"
            stream.thread_count = 1
            return stream
    raise DecodeError("no_video", "no video stream")


def _times(stream: av.VideoStream, ascending: Sequence[int]) -> Times:
    """Seconds count from the first frame."""
    if stream.time_base is None:
        raise _Unindexed
    stamps = np.asarray(ascending, np.int64)
    seconds = (stamps - stamps[0]) * float(stream.time_base)
    return Times(stamps, seconds, 1 / _rate(stream))


def _rate(stream: av.VideoStream) -> float:
    """Frames per second; for variable ones the average."""
    return float(stream.average_rate or stream.guessed_rate or 25)


def _packet_times(
    container: av.container.InputContainer, stream: av.VideoStream
) -> tuple[Times, Int[np.ndarray, "k"]]:
    """Time stamps of all frames in order of display, and those of the key frames."""
    stamps: list[int] = []
    keys: list[int] = []
    if container.format.name == "avi" and stream.codec_context.has_b_frames:
        raise _Unindexed  # AVI stores times of decoding
    for packet in container.demux(stream):
        if packet.size == 0:
            continue  # the flush packet at the end
        if packet.is_corrupt:
            raise DecodeError("truncated", f"broken packet after {len(stamps)} frames")
        if packet.pts is None:
            raise _Unindexed
        if packet.is_discard:
            continue  # hidden by an edit list
        stamps.append(packet.pts)
        if packet.is_keyframe:
            keys.append(packet.pts)
    if not stamps:
        raise DecodeError("no_frames", "the video stream holds no frames")
    stamps.sort()
    if len(set(stamps)) < len(stamps):
        raise _Unindexed
    times = _times(stream, stamps)
    _check_complete(container, stream, times)
    return times, np.asarray(sorted(keys), np.int64)


def _check_complete(
    container: av.container.InputContainer, stream: av.VideoStream, times: Times
) -> None:
    """Compares with what the header announced: FFmpeg reads a file cut short without complaint."""
    end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if 0 < container.size < end:
        raise DecodeError("truncated", f"{container.size} of {end} bytes or more")
    if container.format.name.startswith("mov"):
        return  # its index was the whole truth; its counts include frames hidden by an edit list
    count = len(times.stamps)
    if stream.frames and count < stream.frames * (1 - MISSING_SHARE):
        raise DecodeError("truncated", f"{count} of {stream.frames} frames")
    announced = _announced_seconds(container, stream)
    length = float(times.seconds[-1]) + times.period
    if length < announced - max(MISSING_SECONDS, MISSING_SHARE * announced):
        raise DecodeError("truncated", f"{length:.2f} of {announced:.2f} seconds")


def _announced_seconds(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Length of the video stream as the header has it, 0 where it does not say.

    The container's length is that of its longest stream, so a second is taken off for sound.
    """
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if tag := stream.metadata.get("DURATION"):  # Matroska: 00:00:04.000000000
        hours, minutes, seconds = tag.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    if container.duration is not None and not stream.frames:
        return container.duration / av.time_base - 1.0
    return 0.0


def _choose(clip: Times, choose: Choose) -> Times:
    if not len(clip.stamps):
        raise DecodeError("no_frames", "no frame between start and end")
    indices = choose(clip)
    return Times(clip.stamps[indices], clip.seconds[indices], clip.period)


def _seek_and_decode(
    path: str, wanted: Int[np.ndarray, "f"], keys: Int[np.ndarray, "k"]
) -> list[Image.Image]:
    """Decodes from the key frame before each wanted frame, skipping groups without one."""
    images: list[Image.Image] = []
    with _open(path) as container:
        stream = _stream(container)
        frames, shown = container.decode(stream), None
        for stamp in wanted.tolist():
            before = keys[keys <= stamp]
            if len(before) and shown is not None and before[-1] > shown:
                container.seek(int(before[-1]), stream=stream, backward=True)
                frames = container.decode(stream)
            for frame in frames:
                if frame.pts is None:
                    raise _Unindexed
                shown = frame.pts
                if shown >= stamp:
                    break
            if shown != stamp:
                raise _Unindexed
            images.append(_image(frame))
    return images


def _decode_all(
    path: str, choose: Choose, start: float | None, end: float | None
) -> tuple[Times, list[Image.Image]]:
    """Two full decodes, one for the times and one for the pixels, so that memory stays small."""
    with _open(path) as container:
        stream = _stream(container)
        shown = [frame.pts for frame in container.decode(stream)]
        if not shown:
            raise DecodeError("no_frames", "no frame could be decoded")
        stamps = [stamp for stamp in shown if stamp is not None]
        by_count = sorted(set(stamps)) != shown or stream.time_base is None
        if by_count:  # no usable time stamps
            order = np.arange(len(shown))
            times = Times(order, order / _rate(stream), 1 / _rate(stream))
        else:
            times = _times(stream, stamps)
        _check_complete(container, stream, times)
    chosen = _choose(times.within(start, end), choose)
    wanted, images = set(chosen.stamps.tolist()), []
    with _open(path) as container:
        for i, frame in enumerate(container.decode(_stream(container))):
            if (i if by_count else frame.pts) in wanted:
                images.append(_image(frame))
    return chosen, images


def _image(frame: av.VideoFrame) -> Image.Image:
    """Upright RGB. The rotation that phones write beside the pixels counts counter-clockwise."""
    if frame.is_corrupt:
        raise DecodeError("damaged", f"a broken frame at {frame.time} s")
    image = frame.to_image()
    quarter_turns = round((frame.rotation or 0) / 90) % 4
    turn = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    return image.transpose(turn[quarter_turns]) if quarter_turns else image
