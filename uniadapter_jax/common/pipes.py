"""What is printed may go to a program that stops reading, as `head` does."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import TextIO

STATUS = 128 + signal.SIGPIPE  # as shells report a program that ended so


@contextlib.contextmanager
def ending_with_the_reader() -> Iterator[None]:
    """Within it, a command whose output nobody reads any more ends without a traceback."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, and not at the interpreter's end, where it cannot be caught
    except BrokenPipeError:
        gone = [stream for stream in (sys.stdout, sys.stderr) if _nobody_reads(stream)]
        if not gone:  # it was another pipe, such as a worker's
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in gone:
            os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        sys.exit(STATUS)


def _nobody_reads(stream: TextIO) -> bool:
    """Whether the stream is a pipe, or a socket, whose other end is closed."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):  # no file, such as a test's own stream
        return False
