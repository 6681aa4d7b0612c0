"""Writes the numbers of a run for TensorBoard, whose HPARAMS tab compares the results of workdirs.

`clu.metric_writers` would import TensorFlow; tensorboardX does not, and is kept from PyTorch, which
it would import where that is installed: every start of a run would take nearly twice as long. Only
its EventsWriter is used: its SummaryWriter writes in a thread, where a full disk makes the process
wait forever.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.runs.boards import Begun


@contextlib.contextmanager
def _without(module: str) -> Iterator[None]:
    """Within it, a module that was not imported yet seems not to be installed."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


with _without("torch"):
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.summary import hparams, scalar

_RESULT = ".result"  # the end of the name of the file with the result


class TensorBoard:
    """Files of events in the workdir, as `runs.boards.Board` says: one of each process that began,
    and one of the newest result."""

    _folder: pathlib.Path
    _events: EventsWriter | None = None
    _pending = 0  # bytes since the last flush

    def begin(self, run: Begun) -> None:
        """Makes the folder."""
        self._run = run
        self._folder = run.workdir / "tensorboard"
        with disk_errors(self._folder):
            self._folder.mkdir(exist_ok=True)

    def resume(self, step: int) -> None:
        """Begins a file, in which TensorBoard reads that later steps of earlier files are void."""
        with disk_errors(self._folder):
            # With the process number, as two starts within a second would share a file.
            self._events = self._file(f".{os.getpid()}")
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(step=step + 1, session_log=start))
            self._events.flush()

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """Writes numbers under kind/name."""
        assert self._events is not None
        events = [_event(step, scalar(f"{kind}/{name}", value)) for name, value in numbers.items()]
        self._pending += sum(event.ByteSize() for event in events)
        with disk_errors(self._folder, self._pending):
            for event in events:
                self._events.write_event(event)

    def flush(self) -> None:
        """Brings the events to disk."""
        if self._events is not None:
            with disk_errors(self._folder, self._pending):
                self._events.flush()
            self._pending = 0

    def finish(self, step: int, final: Mapping[str, float]) -> None:
        """Writes the result and the settings into a file of their own, in place of an older one."""
        with disk_errors(self._folder):
            earlier = list(self._folder.glob(f"*{_RESULT}"))
            file = self._file(f".{os.getpid()}{_RESULT}")
            try:
                # Without the list of all settings and metrics that hparams gives first: TensorBoard
                # takes it from one run, and would leave out what only the others have.
                for summary in hparams(dict(self._run.settings), dict(final))[1:]:
                    file.write_event(_event(step, summary))
                for name, value in final.items():
                    file.write_event(_event(step, scalar(f"final/{name}", value)))
            finally:
                file.close()
            for path in earlier:
                if str(path) != file._file_name:
                    path.unlink()

    def close(self) -> None:
        """Flushes and closes the file of this process."""
        if self._events is not None:
            with disk_errors(self._folder, self._pending):
                self._events.close()
            self._events = None

    def _file(self, end: str) -> EventsWriter:
        return EventsWriter(str(self._folder / "events"), end)


def _event(step: int, summary: Summary) -> Event:
    return Event(step=step, wall_time=time.time(), summary=summary)
