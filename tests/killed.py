"""A command in a forked child that is killed at its n-th step, wherever that is."""

from __future__ import annotations

import importlib
import os
import pathlib
import signal
import sys
from typing import Any


def run(module: str, arguments: list[str], after: str, at: int | None, report: str) -> None:
    """`MODULE.main(ARGUMENTS)`, SIGKILLed at the `at`-th call after function `after` was entered.

    Calls are Python's and the system's (writing, renaming, ...). `report` gets the status and how
    many calls there were, unless it was killed.
    """
    sys.stderr = sys.stdout = open(os.devnull, "w")
    count, counting = 0, False

    def profile(frame: Any, event: str, _: Any) -> None:
        nonlocal count, counting
        if event == "call" and frame.f_code.co_name == after:
            counting = True
        if counting and event in ("call", "c_call"):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    main = importlib.import_module(module).main
    sys.setprofile(profile)
    status = main(arguments)
    sys.setprofile(None)
    pathlib.Path(report).write_text(f"{status} {count}")
