"""Files that end the process when they are decoded: found once, then listed, not tried again.

Until files that are read are stored, their names are in INDEX/reading.json. What a run that
died left there is suspected, and tried in a process of its own first.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import read_json
from uniadapter_jax.common.signals import hidden_from_children
from uniadapter_jax.data.child import end_with_parent
from uniadapter_jax.data.media.kinds import DecodeError
from uniadapter_jax.inference.clip_files import read_clips

NAME = "reading.json"
SECONDS = 600.0  # for one file


class Reading:
    """The files that are being read, on disk, and those that a dead run was reading."""

    def __init__(self, index: pathlib.Path, folder: pathlib.Path | None = None):
        """`folder` is where this process keeps its note, if it is one of several."""
        self.path = (folder or index) / NAME
        self.suspects = _noted(index / NAME)

    def now(self, paths: Sequence[str]) -> None:
        """Notes the files in work; it need not outlive the machine."""
        self.path.write_text(json.dumps([*paths, *sorted(self.suspects - set(paths))]))

    def end(self) -> None:
        """All that was read is stored."""
        self.path.unlink(missing_ok=True)


def _noted(path: pathlib.Path) -> frozenset[str]:
    with contextlib.suppress(FileNotFoundError, UserError):  # half-written: nothing is known
        return frozenset(filter(_is_text, read_json(path, list)))
    return frozenset()


def keep_suspects(index: pathlib.Path, folders: Sequence[pathlib.Path]) -> None:
    """Notes in the index what processes that died have left in folders of their own."""
    if suspects := frozenset().union(*(_noted(folder / NAME) for folder in folders)):
        (index / NAME).write_text(json.dumps(sorted(suspects | _noted(index / NAME))))


def left(index: pathlib.Path) -> bool:
    """Whether files are being read, or were when the process died."""
    return (index / NAME).exists()


def forget_suspects(index: pathlib.Path) -> None:
    """Removes the note: all files have been tried."""
    (index / NAME).unlink(missing_ok=True)


def survives(*arguments: Any) -> bool:
    """Whether a process that calls `read_clips` with these arguments lives to tell."""
    child = multiprocessing.get_context("spawn").Process(target=_try, args=arguments, daemon=True)
    with hidden_from_children():
        child.start()
    child.join(SECONDS)
    if child.exitcode is None:
        child.kill()
        child.join()
    return child.exitcode == 0


def _try(*arguments: Any) -> None:
    end_with_parent()
    with contextlib.suppress(DecodeError, OSError):
        read_clips(*arguments)
    os._exit(0)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
