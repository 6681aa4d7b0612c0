"""Processes that never outlive the one that started them, not even after its kill -9."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading


def end_with_parent() -> None:
    """In a child of multiprocessing: it ends, from now on, as soon as its parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])  # a pipe that closes when the parent ends
    os._exit(1)
