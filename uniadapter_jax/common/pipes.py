"""Ends a command quietly when the reader of its output has exited, as `head` does."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import TextIO

STATUS = 128 + signal.SIGPIPE  # as shells report a program that SIGPIPE ended


@contextlib.contextmanager
def ending_with_the_reader() -> Iterator[None]:
    """Ends a command without a traceback if nobody reads its output any more."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, because an error at the interpreter's end cannot be caught
    except BrokenPipeError:
        gone = [stream for stream in (sys.stdout, sys.stderr) if _nobody_reads(stream)]
        if not gone:  # another pipe broke, such as a worker's
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
    except (OSError, ValueError):  # not a file, such as a test's stream
        return False
