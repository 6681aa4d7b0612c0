"""Video files as containers: how they are opened, and where their packets lie. Decodes nothing."""

from __future__ import annotations

import array
import dataclasses
from typing import cast

import av
import numpy as np
from jaxtyping import Int

from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.data.media.video_clock import JUMP_BACK, is_joined

# Demuxers that read one file's own bytes. Playlists and scripts, which would make FFmpeg open other
# files or addresses, and formats that show any text as a picture are not among them.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,live_flv,gif,apng,ogg,asf,"
    "rm,h264,hevc,av1,obu,ivf,nut,mxf,dv,m4v,mjpeg,yuv4mpegpipe,swf,nsv,wtv,webp_anim"
)
MAX_PIXELS = 36_000_000  # of a frame, a little above 8K; both copies of one take 250 MB
MAX_PACKETS = 20_000_000  # of all streams; 46 hours with sound, and 400 MB of time stamps
WHOLE_ONLY = ("gif", "apng")  # frames are changes of those before, which the packets do not tell
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own leave transparency out
_NOTICE = "crccheck+bitstream+buffer"  # more faults that decoders then look for

av.logging.set_level(av.logging.PANIC)  # broken files are reported by us, once
av.logging.set_skip_repeated(False)  # two files may have the same fault


def open_file(path: str) -> av.container.InputContainer:
    options = {
        "format_whitelist": FORMATS,
        "protocol_whitelist": "file",
        "max_pixels": str(4 * MAX_PIXELS),  # while it looks for the size; larger has none then
    }
    return av.open(f"file:{path}", options=options)  # whatever protocol its name looks like


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The first video stream that is no cover picture."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    raise DecodeError("no_video", "no video stream")


def decoder(stream: av.VideoStream) -> av.VideoCodecContext:
    """A decoder in one thread, since `prepare` runs many workers.

    Raises:
      DecodeError: no decoder is there, or the frames are too large.
    """
    context = stream.codec_context
    if context is None:
        raise DecodeError("unreadable", "no decoder for its codec")
    check_size(context.width, context.height)
    if stream.metadata.get("alpha_mode") == "1" and context.name in ALPHA_DECODERS:
        created = av.CodecContext.create(ALPHA_DECODERS[context.name], "r")
        context = cast(av.VideoCodecContext, created)
    context.options = {"max_pixels": str(MAX_PIXELS), "err_detect": _NOTICE}
    context.thread_type = "NONE"
    context.thread_count = 1
    return context


def check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DecodeError(
            "too_large", f"frames of {width} x {height}; at most {MAX_PIXELS:,} pixels"
        )


@dataclasses.dataclass(frozen=True)
class Survey:
    """What the packets of a file say.

    Attributes:
      stamps: of the frames in order of display.
      keys: those of the key frames.
      keys_decoded: when these are to be decoded.
      broken: stamps of packets that are there in part, or whose predecessors are lost.
      lost: stamps at which frames lack that the container says it could not read.
      decoding_order: whether the stamps are times of decoding, though frames are reordered.
      indexed: whether the stamps find the frames; else only a full decode does.
      video_end, file_end: seconds at which the last frame goes, and the last stream ends; as the
        streams count.
      last_dts: when the last packet of the video is to be decoded; -1 if unknown.
      bytes_read: where in the file the last packet of the video ended, 0 if unknown.
      late_start: whether the container could not read something before the first frame.
      early_end: whether it could not after the last one.
    """

    stamps: Int[np.ndarray, "f"]
    keys: Int[np.ndarray, "k"]
    keys_decoded: Int[np.ndarray, "k"]
    broken: frozenset[int]
    lost: Int[np.ndarray, "l"]
    decoding_order: bool
    indexed: bool
    last_dts: int
    video_end: float
    file_end: float
    bytes_read: int
    late_start: bool
    early_end: bool


def tick_of(stream: av.VideoStream) -> float:
    """Seconds of a unit of the stream's time stamps."""
    return float(stream.time_base) if stream.time_base else 1 / rate_of(stream)


def rate_of(stream: av.VideoStream) -> float:
    """Frames per second; for variable ones the average."""
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    return rate if 1e-6 < rate < 1e6 else 25.0


def open_listening(path: str) -> tuple[av.container.InputContainer, bool]:
    """The open file; whether the container says that something at its beginning is broken."""
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as complaints:
            container = open_file(path)
    finally:
        av.logging.set_level(av.logging.PANIC)
    return container, any(speaker == container.format.name for _, speaker, _ in complaints)


def survey(
    container: av.container.InputContainer, stream: av.VideoStream, complained: bool = False
) -> Survey:
    """Reads every packet once.

    Args:
      complained: whether the container did when it was opened.

    Raises:
      DecodeError: the container breaks off, or holds more packets than can be counted here.
    """
    reader, name = _Survey(stream), container.format.name
    reader.complained = complained
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as complaints:  # a demuxer reads on after damage, and says so
            for packet in container.demux():
                reader.add(packet, any(speaker == name for _, speaker, _ in complaints))
                complaints.clear()
    except av.error.FFmpegError as error:
        detail = f"cannot be read on after {len(reader.stamps)} frames: {error.strerror}"
        raise DecodeError("damaged", detail) from error
    finally:
        av.logging.set_level(av.logging.PANIC)
    return reader.result(container.format.name, bool(stream.codec_context.has_b_frames))


class _Survey:
    """Collects the packets of a file; arrays, since a day has millions."""

    def __init__(self, stream: av.VideoStream):
        self.stream, self.tick = stream, tick_of(stream)
        self.stamps, self.durations = array.array("q"), array.array("q")
        self.keys, self.keys_decoded = array.array("q"), array.array("q")
        self.broken: set[int] = set()
        self.breaks: list[int] = []  # newest stamps when the container complained
        self.newest: int | None = None
        self.complained = self.late_start = False
        self.in_order = True
        self.last_dts: int | None = None
        self.packets = self.bytes_read = 0
        self.file_end = -np.inf

    def add(self, packet: av.Packet, complained: bool) -> None:
        self.complained |= complained
        if packet.stream_index == self.stream.index and packet.dts is not None:
            if self.last_dts is not None and packet.dts < self.last_dts - JUMP_BACK / self.tick:
                self.in_order = False
            self.last_dts = packet.dts
        if packet.size == 0:
            return  # the flush at the end; or, in AVI, a frame that repeats the one before
        self.packets += 1
        if self.packets > MAX_PACKETS:
            raise DecodeError("too_large", f"more than {MAX_PACKETS:,} packets")
        if packet.pts is not None and packet.time_base:
            end = (packet.pts + (packet.duration or 0)) * float(packet.time_base)
            self.file_end = max(self.file_end, end)
        if packet.stream_index == self.stream.index:
            self._add_frame(packet)

    def _add_frame(self, packet: av.Packet) -> None:
        if packet.pos is not None:
            self.bytes_read = max(self.bytes_read, packet.pos + packet.size)
        if packet.pts is None:
            self.in_order = False
        elif not packet.is_discard:  # else an edit list hides it
            self.stamps.append(packet.pts)
            self.durations.append(packet.duration or 0)
            if packet.is_keyframe:
                self.keys.append(packet.pts)
                self.keys_decoded.append(packet.pts if packet.dts is None else packet.dts)
            if self.complained and self.newest is None:
                self.late_start = True
            elif self.complained and self.newest is not None:
                self.breaks.append(self.newest)
                if not packet.is_keyframe:
                    self.broken.add(packet.pts)
            self.complained = False
            self.newest = max(packet.pts, packet.pts if self.newest is None else self.newest)
            if packet.is_corrupt:
                self.broken.add(packet.pts)

    def result(self, format_name: str, reorders: bool) -> Survey:
        stamps = np.asarray(self.stamps, np.int64)
        video_end = self._video_end(stamps, reorders)
        decoding_order = reorders and len(stamps) > 1 and bool(np.all(np.diff(stamps) >= 0))
        stamps.sort()
        keys, places = np.unique(np.asarray(self.keys, np.int64), return_index=True)
        indexed = (
            self.in_order
            and len(stamps) > 0
            and self.stream.time_base is not None
            and bool(np.all(stamps[1:] > stamps[:-1]))
            and not is_joined(stamps, self.tick, format_name)
            and not decoding_order
            and not (format_name == "avi" and reorders)  # it may leave out frames that repeat
            and format_name not in WHOLE_ONLY
        )
        return Survey(
            stamps,
            keys,
            np.asarray(self.keys_decoded, np.int64)[places],
            frozenset(self.broken),
            self._lost(stamps),
            decoding_order,
            indexed,
            -1 if self.last_dts is None else self.last_dts,
            video_end,
            max(self.file_end, video_end),
            self.bytes_read,
            self.late_start,
            self.complained,
        )

    def _lost(self, stamps: Int[np.ndarray, "f"]) -> Int[np.ndarray, "l"]:
        """Where steps are long beside a complaint, frames are missing."""
        lost: set[int] = set()
        steps = np.diff(stamps)
        usual = int(np.median(steps)) if len(steps) else 0
        for newest in self.breaks:
            place = int(np.searchsorted(stamps, newest))
            for i in range(max(0, place - 2), min(place + 1, len(steps))):
                if steps[i] > 1.5 * usual:
                    lost.add(int(stamps[i]) + usual)
        return np.asarray(sorted(lost), np.int64)

    def _video_end(self, stamps: Int[np.ndarray, "f"], reorders: bool) -> float:
        """Where frames are reordered, durations in MP4 are those between two decodings, whose sum
        is right all the same."""
        if not len(stamps):
            return 0.0
        durations = np.asarray(self.durations, np.int64)
        last = int(np.argmax(stamps))
        usual = np.median(np.diff(np.sort(stamps))) if len(stamps) > 1 else 0
        period = float(usual) or 1 / (rate_of(self.stream) * self.tick)
        if last == len(stamps) - 1 or not reorders:
            shown = float(durations[last]) or period
        else:
            shown = float(stamps.min() + durations.sum() - stamps[last])
            shown = shown if shown > 0 else period
        return (float(stamps[last]) + shown) * self.tick
