"""Errors that a user can act on, and how a command ends on one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from absl import app, logging


class UserError(Exception):
    """Wrong input, configuration or environment. The message says what, where, and what to do."""


def run_app(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs an absl command; a `UserError` ends it with one line on stderr and exit status 2."""

    def guarded(argv: Sequence[str]) -> int | None:
        if len(argv) > 1:
            print(f"error: unexpected arguments {list(argv[1:])}; see --help", file=sys.stderr)
            return 2
        try:
            return main(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    # Orbax and TFDS narrate every file at INFO.
    logging.set_verbosity(logging.WARNING)
    app.run(guarded)
