"""What is known of a video file before anything of it is decoded."""

from __future__ import annotations

import dataclasses
import os

import av

from uniadapter_jax.data.media import video_complete, video_file
from uniadapter_jax.data.media.video_file import Survey

REMEMBERED = 2_000_000  # most frames of a file of which the packets are remembered; 16 bytes each


@dataclasses.dataclass(frozen=True)
class Opened:
    """A file that is complete.

    Attributes:
      name: of its format.
      tick: seconds of a unit of its stamps.
      rate: frames a second.
      origin: seconds at which its clock is 0, as the streams count; None if unknown.
    """

    name: str
    tick: float
    rate: float
    packets: Survey
    origin: float | None


_last: tuple[tuple[str, int, int, int], Opened] | None = None


def look_through(path: str, remember: bool = False) -> Opened:
    """Reads all packets of a file.

    Args:
      remember: takes what the last call found if the file has not changed since, by its size and
        time, and keeps it for the next: many clips of a long file.
    """
    global _last
    status = os.stat(path)
    key = (path, status.st_size, status.st_mtime_ns, status.st_ino)
    if remember and _last is not None and _last[0] == key:
        return _last[1]
    _last = None  # so that memory holds one
    opened = _look_through(path)
    if remember and len(opened.packets.stamps) <= REMEMBERED:
        _last = key, opened
    return opened


def _look_through(path: str) -> Opened:
    container, complained = video_file.open_listening(path)
    with container:
        stream = video_file.video_stream(container)
        video_file.decoder(stream)  # says what it cannot do before all is read
        packets = video_file.survey(container, stream, complained)
        video_complete.check_complete(path, container, stream, packets)
        begin = container.start_time
        return Opened(
            container.format.name,
            video_file.tick_of(stream),
            video_file.rate_of(stream),
            packets,
            None if begin is None else begin / av.time_base,
        )
