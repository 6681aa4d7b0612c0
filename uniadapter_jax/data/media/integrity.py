"""Whether a picture file is whole: what Pillow's decoders let pass.

Pillow stops reading a PNG at the end of its data and leaves the rest of the picture black; it does
not compare checksums of pixels; and it is not told of libjpeg's warnings. None of these checks
changes a pixel, or refuses a picture that every decoder reads without a warning.
"""

from __future__ import annotations

import dataclasses
import os
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import av

from uniadapter_jax.data.media.kinds import DecodeError

BLOCK_BYTES = 1 << 20
HEAD_BYTES = 64  # of a chunk; more than any header has
JPEG_BYTES = 64 << 20  # a larger JPEG is not looked through
JPEG_SCANS = 100  # encoders write about ten; a thousand would take minutes
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])", re.DOTALL)  # in pixels: no restart, no 0xff
_SIZES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_CHECKED = {0xC0, 0xC1, 0xC2}  # Huffman codes, sequential or progressive: what FFmpeg knows
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG, by its colour type


@dataclasses.dataclass
class Jpeg:
    """What the segments of a JPEG say.

    Attributes:
      kind: the marker that describes the frame, 0 where there is none.
      samples: values of all components, of the padded picture.
      scans: how often pixel data begins.
      end: bytes of the first picture, 0 where its end is missing.
    """

    kind: int = 0
    bits: int = 0
    samples: int = 0
    scans: int = 0
    end: int = 0

    @property
    def progressive(self) -> bool:
        return self.kind in (0xC2, 0xC6, 0xCA, 0xCE)


def read_jpeg(data: bytes) -> Jpeg:
    """Walks the segments up to the end of the first picture."""
    jpeg, position = Jpeg(), 2
    while found := _MARKER.search(data, position):
        marker, position = found[1][0], found.end()
        if marker == 0xD9:
            jpeg.end = position
            break
        if marker in (0x01, 0xD8):
            continue
        size = int.from_bytes(data[position : position + 2], "big")
        if marker in _SIZES and not jpeg.kind:
            jpeg.kind = marker
            jpeg.bits, jpeg.samples = _frame(data[position + 2 : position + size])
        jpeg.scans += marker == 0xDA
        position += size
    return jpeg


def _frame(segment: bytes) -> tuple[int, int]:
    """(bits of a sample, number of samples) by a frame header."""
    if len(segment) < 6 or len(segment) < 6 + 3 * segment[5]:
        return 0, 0
    height, width = (int.from_bytes(segment[i : i + 2], "big") for i in (1, 3))
    factors = [divmod(segment[7 + 3 * i], 16) for i in range(segment[5])]
    across, down = (max((f[i] for f in factors), default=1) or 1 for i in (0, 1))
    share = sum(h * v for h, v in factors) / (across * down)
    return segment[0], int(width * height * share)


def check_jpeg(data: bytes, jpeg: Jpeg) -> None:
    """Decodes once more with FFmpeg, which says where codes are broken or blocks are missing.

    Raises:
      DecodeError: they are, or the file asks for more work than any picture needs.
    """
    if jpeg.scans > JPEG_SCANS:
        raise DecodeError("damaged", f"{jpeg.scans} scans, more than {JPEG_SCANS}")
    if jpeg.kind not in _CHECKED or jpeg.bits != 8 or not jpeg.end:
        return
    decoder = av.CodecContext.create("mjpeg", "r")
    decoder.thread_count = 1
    decoder.options = {"err_detect": "explode"}
    try:
        for frame in decoder.decode(av.Packet(data[: jpeg.end])):
            if frame.is_corrupt:
                raise DecodeError("damaged", "the data of its pixels is broken")
    except av.error.InvalidDataError as error:
        raise DecodeError("damaged", "the data of its pixels is broken or incomplete") from error
    except av.error.FFmpegError:
        return  # a kind of JPEG that FFmpeg does not know


def check_heic(path: str) -> None:
    """Decodes all pictures and tiles with FFmpeg: libheif's decoder hides what is broken.

    Raises:
      DecodeError: FFmpeg knows the file and finds the data of pixels broken.
    """
    options = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2", "protocol_whitelist": "file"}
    decoding = False
    try:
        with av.open(path, options=options) as container:
            for stream in container.streams.video:
                stream.codec_context.thread_count = 1
                stream.codec_context.options = {"err_detect": "explode"}
            decoding = True
            for packet in container.demux(video=list(range(len(container.streams.video)))):
                for frame in packet.decode():
                    if isinstance(frame, av.VideoFrame) and frame.is_corrupt:
                        raise DecodeError("damaged", "the data of its pixels is broken")
    except (av.error.FFmpegError, ValueError) as error:
        if decoding and isinstance(error, av.error.InvalidDataError):
            raise DecodeError("damaged", "the data of its pixels is broken") from error


def check_png(file: BinaryIO, animated: bool = False) -> None:
    """Compares the checksums of all chunks that pixels depend on, and counts the rows.

    Raises:
      DecodeError: a checksum is wrong, or rows or frames are missing.
    """
    file.seek(8)
    pixels, header, frames, announced, name = _Inflated(0), b"", 0, 0, b""
    for name, blocks in _chunks(file):
        content = pixels if name in (b"IDAT", b"fdAT") else None
        head = _check_chunk(name, blocks, content)
        if name == b"IHDR":
            header, pixels = head, _Inflated(_png_bytes(head))
        elif name == b"acTL":
            announced = int.from_bytes(head[:4], "big")
        elif name == b"fcTL":
            frames += 1
            if pixels.count:  # else it describes the picture that every reader shows
                pixels.check()
                pixels = _Inflated(_png_bytes(head[4:12] + header[8:]))
    pixels.check()
    if animated and (frames < announced or name != b"IEND"):
        raise DecodeError("truncated", f"ends at frame {frames} of {announced}")


def _check_chunk(name: bytes, blocks: Iterator[bytes | int], pixels: _Inflated | None) -> bytes:
    """The first bytes of a chunk; raises DecodeError where its checksum is wrong."""
    wanted = name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"fdAT", b"acTL", b"fcTL")
    head, checksum = b"", zlib.crc32(name)
    for block in blocks:
        if isinstance(block, int):
            if wanted and block != checksum:
                raise DecodeError("damaged", f"a wrong checksum in {name.decode()}")
            break
        if wanted:
            checksum = zlib.crc32(block, checksum)
        if pixels is not None:  # a frame's data begins with its number
            pixels.add(block[4:] if name == b"fdAT" and not head else block)
        head = head or block[:HEAD_BYTES]
    return head


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, Iterator[bytes | int]]]:
    """(name, blocks of its content and then its checksum) up to IEND or the end of the file.

    An IEND without its checksum is none.
    """
    position = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(position)
    while len(head := file.read(8)) == 8:
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if not name.isalpha():
            raise DecodeError("damaged", f"no chunk at byte {position}")
        if name == b"IEND" and position + 12 > size:
            return
        yield name, _blocks(file, length)
        position += 12 + length
        if name == b"IEND":
            return
        file.seek(position)


def _blocks(file: BinaryIO, length: int) -> Iterator[bytes | int]:
    while length and (block := file.read(min(length, BLOCK_BYTES))):
        length -= len(block)
        yield block
    if not length and len(checksum := file.read(4)) == 4:
        yield int.from_bytes(checksum, "big")


class _Inflated:
    """Counts the bytes that a compressed stream gives, up to the number expected."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.count = 0
        self._stream = zlib.decompressobj()

    def add(self, block: bytes) -> None:
        while block and self.count <= self.expected and not self._stream.eof:
            try:
                self.count += len(self._stream.decompress(block, BLOCK_BYTES))
            except zlib.error as error:
                raise DecodeError("damaged", f"the data of its pixels, {error}") from error
            block = self._stream.unconsumed_tail

    def check(self) -> None:
        if self.count < self.expected:
            share = self.count / self.expected
            raise DecodeError("truncated", f"{share:.0%} of the data of its pixels")


def _png_bytes(header: bytes) -> int:
    """Length of the pixels' data, filter bytes included, by the content of IHDR."""
    if len(header) < 13:
        raise DecodeError("damaged", "a header that is too short")
    width, height = (int.from_bytes(header[i : i + 4], "big") for i in (0, 4))
    bits = header[8] * _CHANNELS.get(header[9], 1)
    if not header[12]:
        return height * (1 + (width * bits + 7) // 8)
    total = 0
    for left, top, right, down in (
        *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
        *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
    ):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def check_gif(file: BinaryIO) -> int:
    """Walks the blocks to the trailer, without which frames may lack; returns their number.

    Raises:
      DecodeError: there is none, or something else lies where a block should begin.
    """
    file.seek(0)
    head = file.read(13)
    frames = 0
    try:
        file.seek(_palette(_byte(head, 10)), os.SEEK_CUR)
        while (kind := _byte(file.read(1), 0)) != ord(";"):
            if kind == ord("!"):
                file.seek(1, os.SEEK_CUR)
            elif kind == ord(","):
                frames += 1
                file.seek(_palette(_byte(file.read(9), 8)) + 1, os.SEEK_CUR)
            elif kind == 0:
                continue  # stray zeros, which decoders skip
            else:
                raise DecodeError("damaged", f"no block at byte {file.tell() - 1}")
            while length := _byte(file.read(1), 0):
                file.seek(length, os.SEEK_CUR)
    except IndexError as error:
        raise DecodeError("truncated", f"ends at frame {frames}, without an end mark") from error
    return frames


def check_length(file: BinaryIO) -> None:
    """Compares a WebP, AVIF or HEIC with the lengths that it gives its parts.

    Raises:
      DecodeError: the file ends within one.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    head = file.read(12)
    if head.startswith(b"RIFF"):
        end = 8 + int.from_bytes(head[4:8], "little")
    else:
        end = 0
        while 0 < size - end and len(head) >= 8:
            length = int.from_bytes(head[:4], "big")
            if length == 1:  # too long for four bytes
                length = int.from_bytes(head[8:12] + file.read(4), "big")
            end = end + length if length else size  # 0: up to the end of the file
            file.seek(min(end, size))
            head = file.read(12)
    if end > size:
        raise DecodeError("truncated", f"{size:,} of {end:,} bytes")


def _byte(data: bytes, place: int) -> int:
    return data[place]


def _palette(flags: int) -> int:
    """Bytes of the colour table that these flags announce."""
    return 3 << (flags % 8 + 1) if flags & 0x80 else 0
