"""Calls a function in a process of its own, so that nothing that ends it ends the grid.

The processes are forked from a server that has imported the package and has not yet started JAX:
they begin in milliseconds, and the memory and the devices of a run are its own. A process ends with
the one that asked for it, even if that is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from uniadapter_jax.common import signals
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.parallel.preemption import Preempted

# Import all that a run needs.
_PRELOADED = ["uniadapter_jax.benchmark.jobs", "tensorflow_datasets"]


class Outcome(NamedTuple):
    """What the function returned, or in `error` why it did not."""

    value: Any = None
    error: str = ""


def call(function: Callable[..., Any], *arguments: Any, log: pathlib.Path) -> Outcome:
    """The outcome of `function(*arguments)` in another process, whose output goes to `log`.

    Raises:
      KeyboardInterrupt: this process was asked to stop; the other one has saved and ended.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    log.parent.mkdir(parents=True, exist_ok=True)
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, str(log), function, arguments))
    process.start()
    theirs.close()
    try:
        with signals.unsaved(lambda: False):  # the run saves first, however long that takes
            message = ours.recv()
    except EOFError:
        process.join()
        return Outcome(error=_how_it_ended(process.exitcode, log))
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()
        ours.close()
    if message.pop("stopped", False):  # a terminal sends SIGINT to both
        raise KeyboardInterrupt
    return Outcome(**message)


def _serve(connection: Connection, log: str, function: Callable[..., Any], arguments: Any) -> None:
    """Runs in the other process."""
    threading.Thread(target=_end_with_the_caller, args=(connection,), daemon=True).start()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    try:
        message = {"value": function(*arguments)}
    except Preempted:
        message = {"stopped": True}
    except UserError as error:
        message = {"error": str(error)}
    except Exception as error:  # whatever a run dies of is a row of the report
        traceback.print_exc()
        message = {"error": f"{type(error).__name__}: {error} ({log} has the traceback)"}
    connection.send(message)


def _end_with_the_caller(connection: Connection) -> None:
    """Ends this process when the other end of the pipe is closed, as by kill -9."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os._exit(1)


def _how_it_ended(status: int | None, log: pathlib.Path) -> str:
    if status is None or status >= 0:
        return f"the process ended with status {status}; {log} has its last lines"
    name = signal.Signals(-status).name
    memory = "; the system may have been out of memory" if -status == signal.SIGKILL else ""
    return f"the process was ended by {name}{memory}; {log} has its last lines"
