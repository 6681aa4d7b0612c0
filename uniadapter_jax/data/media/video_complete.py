"""Whether a video file is all there. FFmpeg reads one that was cut short without complaint.

What a header announces counts only together with a trace in the bytes: a length that some program
wrote wrongly is no damage, and sound may be longer than the picture. Some formats leave no trace
where they are cut (MPEG-TS, raw streams, recordings that were never closed).
"""

from __future__ import annotations

import re
import struct
from typing import BinaryIO

import av

from uniadapter_jax.data.media import integrity, pictures
from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.data.media.video_file import Survey, rate_of, tick_of

MISSING_SHARE = 0.05  # of the announced length that may lack before a file counts as truncated,
MISSING_SECONDS = 0.5  # or this much, whichever is more
TAIL_SHARE = 0.1  # of a whole file that may follow the last packet: indexes, tags, attachments
HEAD_BYTES = 1 << 16
SKIPPING = ("matroska,webm",)  # whose reader goes on behind what it cannot read, and says so
BOXES = ("mov,mp4,m4a,3gp,3g2,mj2",)
WITH_LENGTH = ("matroska,webm", "flv", "asf", "avi", "nut", "mxf", "rm", "wtv", "ivf", "nsv")

_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # the object of a file's properties
_EBML_SIZE = re.compile(rb"\x18\x53\x80\x67(.{1,8})", re.DOTALL)


def check_complete(
    path: str, container: av.container.InputContainer, stream: av.VideoStream, packets: Survey
) -> None:
    """Raises DecodeError for a video stream that begins late or ends before its file says.

    Args:
      packets: what was read of it.
    """
    size = container.size
    end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if 0 < size < end:
        raise DecodeError("truncated", f"{size} of {end} bytes or more")
    name = container.format.name
    if name in ("gif", "apng"):
        _check_animation(path, name)
    if name in BOXES:
        with open(path, "rb") as file:
            _check_fragments(file, size)
    if name not in WITH_LENGTH:
        return
    promised = promised_bytes(path)
    announced, reached = _lengths(container, stream, packets)
    some = 1.5 / rate_of(stream) + 0.002  # rounding is less, a frame that lacks is more
    begin = float(packets.stamps[0]) * tick_of(stream) if len(packets.stamps) else 0.0
    if name in SKIPPING and packets.late_start and begin > some:
        raise DecodeError("damaged", f"what comes before {begin:.2f} s cannot be read")
    if promised > size:  # only what follows the last frame may lack
        if not announced or reached < announced - some:
            raise DecodeError("truncated", f"{size} of {promised} bytes")
    elif packets.early_end and reached < announced - some:
        raise DecodeError("damaged", f"what comes after {reached:.2f} s cannot be read")
    elif reached < announced - max(MISSING_SECONDS, MISSING_SHARE * announced):
        if promised and packets.bytes_read >= size * (1 - TAIL_SHARE):
            return  # nothing lacks: the length is wrong
        raise DecodeError("truncated", f"{reached:.2f} of {announced:.2f} seconds")


def _lengths(
    container: av.container.InputContainer, stream: av.VideoStream, packets: Survey
) -> tuple[float, float]:
    """(announced, reached) in seconds on the stream's clock, of the video if the file tells."""
    tick = tick_of(stream)
    if container.format.name == "avi":  # its clock counts frames, also those that repeat
        return stream.frames * tick, (packets.last_dts + 1) * tick
    if tag := stream.metadata.get("DURATION"):  # Matroska: 00:00:04.000000000
        if match := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d*)?)", tag.strip("\0 ")):
            hours, minutes, seconds = match.groups()
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds), packets.video_end
    if container.duration is not None and container.duration > 0:
        return container.duration / av.time_base, packets.file_end  # some count from 0
    return 0.0, packets.file_end


def promised_bytes(path: str) -> int:
    """How long the file says it is; 0 if it does not, or does so otherwise."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if head[:4] == b"RIFF":
        length = int.from_bytes(head[4:8], "little")
        return length + 8 if 0 < length < 0xFFFFFFFF else 0
    if head[:4] == b"\x1a\x45\xdf\xa3" and (match := _EBML_SIZE.search(head)):
        value = match.group(1)
        width = 9 - value[0].bit_length()  # of the length, in its own bytes
        length = int.from_bytes(value[:width], "big") & ((1 << 7 * width) - 1)
        known = width <= len(value) and length < (1 << 7 * width) - 1
        return match.start() + 4 + width + length if known else 0
    if head[:3] == b"FLV" and (match := re.search(rb"\0\x08filesize\0(.{8})", head, re.DOTALL)):
        return int(_double(match.group(1)))
    if (place := head.find(_ASF_FILE)) >= 0 and head[:4] == b"\x30\x26\xb2\x75":
        streamed = head[place + 88 : place + 89] and head[place + 88] & 1
        return 0 if streamed else int.from_bytes(head[place + 40 : place + 48], "little")
    return 0


def _check_fragments(file: BinaryIO, size: int) -> None:
    """Raises DecodeError for a file in fragments where one does not follow the one before.

    FFmpeg stops there without a word. Other files are described by one index.
    """
    position, fragments = 0, 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8 or not re.fullmatch(rb"[\x20-\x7e]{4}", kind):
            if fragments and length:  # 0: up to the end of the file
                raise DecodeError("damaged", f"no fragment at byte {position:,}")
            return
        fragments += kind == b"moof"
        position += length


def _double(data: bytes) -> float:
    value = struct.unpack(">d", data)[0]
    return value if 0 <= value < 1e15 else 0.0


def _check_animation(path: str, name: str) -> None:
    if name == "gif":
        pictures.check_gif(path)
        return
    with open(path, "rb") as file:
        integrity.check_png(file, animated=True)
