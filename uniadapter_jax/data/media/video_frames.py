"""The decoded frames of a video file, and which of them are broken."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping

import av
from PIL import Image

from uniadapter_jax.data.media import video_file
from uniadapter_jax.data.media.video_picture import picture, pixel_aspect

# Decoders that give a frame with broken parts without a mark, and what they then say. Others mark
# their frames, or complain of sound ones, too.
COMPLAINTS: Mapping[str, re.Pattern[str]] = {
    **dict.fromkeys(("hevc", "ffv1", "qtrle"), re.compile("")),
    "mjpeg": re.compile(r"error (y=|count)|bad vlc"),
}
# Decoders that can pass over frames that no other is made from. HEVC says so only within a layer.
PASSES_OVER = ("h264",)
_FLUSHES = 64  # errors that a decoder may report while it gives its last frames
_REORDERED = 16  # packets that may be decoded before a frame of an earlier one is shown


@dataclasses.dataclass(frozen=True)
class Shown:
    """A decoded frame.

    Attributes:
      broken: it is, or it is made from one that is.
      leans: it may be made from a frame that is shown after it.
    """

    frame: av.VideoFrame
    broken: bool

    @property
    def leans(self) -> bool:
        return self.frame.pict_type == av.video.frame.PictureType.B


class Frames:
    """The frames of an open file in order of display, whichever packets cannot be decoded.

    Args:
      wanted: stamps of frames; others may be left out where nothing is made from them. None: all.

    Attributes:
      lost: packets that cannot be decoded, as (frames before it, its stamp); of those before the
        first frame only what follows a key frame, since recordings may begin between two.
      failures: how many cannot be decoded in all.
      suspects: stamps of packets that the decoder complains of.
    """

    def __init__(
        self,
        container: av.container.InputContainer,
        flagged: frozenset[int],
        wanted: frozenset[int] | None = None,
    ):
        self.container, self.flagged = container, flagged
        self.stream = video_file.video_stream(container)
        self.decoder = video_file.decoder(self.stream)
        self.aspect = pixel_aspect(self.stream)
        self.lost: list[tuple[int, int | None]] = []
        self.failures = 0
        self.suspects: set[int] = set()
        self._wanted = wanted if self.decoder.name in PASSES_OVER else None
        self._complaints = COMPLAINTS.get(self.decoder.name)
        self._packets: Iterator[av.Packet] = container.demux(self.stream)
        self._count = 0
        self._fault: int | None = None  # stamp of the newest broken packet or frame
        self._since_fault = 0  # packets decoded since

    def seek(self, stamp: int, decoded_at: int) -> bool:
        """Whether the key frame of a stamp, or one before it, is where reading goes on.

        Some formats are searched by the times of decoding, where a stamp alone leads too far: a
        decoder that begins between key frames makes pictures up.
        """
        self.decoder.flush_buffers()
        self._fault, self._since_fault = None, _REORDERED
        for target in sorted({stamp, decoded_at}, reverse=True):
            self.container.seek(target, stream=self.stream, backward=True)
            packets = self.container.demux(self.stream)
            first = next((packet for packet in packets if packet.is_keyframe), None)
            if first is not None and first.pts is not None and first.pts <= stamp:
                self._packets = itertools.chain([first], packets)
                return True
        return False

    def picture(self, frame: av.VideoFrame) -> Image.Image:
        return picture(frame, self.aspect)

    def __iter__(self) -> Iterator[Shown]:
        self._broken = False
        for packet in self._packets:
            for frame in self._decode(packet):
                yield Shown(frame, self._judge(frame))
                self._count += 1

    def _decode(self, packet: av.Packet) -> Iterator[av.VideoFrame]:
        self._since_fault += 1
        if packet.size and packet.pts in self.flagged:
            self._set_fault(packet.pts)
        for _ in range(_FLUSHES):
            try:
                decoded, complains = self._listen(packet)
                if complains:
                    self._set_fault(packet.pts)
                    self.suspects |= set() if packet.pts is None else {packet.pts}
                yield from decoded
                return
            except av.error.EOFError:
                return  # flushed already
            except av.error.FFmpegError:
                self._set_fault(packet.pts)
                if packet.size:
                    self.failures += 1
                    if self._count or self.lost or packet.is_keyframe:
                        self.lost.append((self._count, packet.pts))
                    return

    def _listen(self, packet: av.Packet) -> tuple[list[av.VideoFrame], bool]:
        """Decodes a packet; whether the decoder says that something in it is broken."""
        if self._wanted is not None:
            self.decoder.skip_frame = "DEFAULT" if packet.pts in self._wanted else "NONREF"
        if self._complaints is None:
            return self.decoder.decode(packet), False
        av.logging.set_level(av.logging.ERROR)
        try:
            with av.logging.Capture() as said:
                decoded = self.decoder.decode(packet)
        finally:
            av.logging.set_level(av.logging.PANIC)
        return decoded, any(self._complaints.search(text) for *_, text in said)

    def _set_fault(self, stamp: int | None) -> None:
        self._broken, self._fault, self._since_fault = True, stamp, 0

    def _judge(self, frame: av.VideoFrame) -> bool:
        """Whether a frame is broken or follows one that is, up to the next sound key frame.

        A packet is decoded before the frames of earlier ones are shown, which are sound.
        """
        if frame.is_corrupt:
            self._set_fault(frame.pts)
            return True
        if not self._broken:
            return False
        if unknown := self._fault is None or frame.pts is None:
            after = self._since_fault >= _REORDERED
        else:
            after = frame.pts > self._fault
        if frame.key_frame and after:
            self._broken = False
        leans = frame.pict_type == av.video.frame.PictureType.B
        return self._broken and (unknown or after or leans or frame.pts == self._fault)
