"""Executes the notebooks with this Python, each in an empty folder; an error in a cell fails.

    python scripts/run_notebooks.py [NAME.ipynb ...]

Nothing is written back: what is committed has no outputs.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import os
import pathlib
import sys
import tempfile
import time

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = pathlib.Path(__file__).parent.parent / "notebooks"
SECONDS = 600  # for one cell, on a busy machine


def execute(path: pathlib.Path) -> bool:
    """Runs all cells of a notebook; says how long it took, or what went wrong."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
        )
        try:
            client.execute()
        except CellExecutionError as error:
            print(f"{path.name}: {error}")
            return False
    print(f"{path.name}: {time.monotonic() - began:.0f} s")
    return True


def main() -> int:
    """Runs those that are named, else all; the status is 1 if one fails."""
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel of this Python, not of the user
    named = [NOTEBOOKS / name for name in sys.argv[1:]]
    ended_well = [execute(path) for path in named or sorted(NOTEBOOKS.glob("*.ipynb"))]
    return int(not all(ended_well))


if __name__ == "__main__":
    sys.exit(main())
