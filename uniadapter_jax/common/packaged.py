"""Configs and tiny models that come with the package, found by name wherever a command is started.

In a checkout the configs are in `configs/` beside the package, in a wheel within it (setup.py).
"""

from __future__ import annotations

import difflib
import pathlib
import re
from collections.abc import Sequence

_PACKAGE = pathlib.Path(__file__).parent.parent
_WITHIN, _BESIDE = _PACKAGE / "configs", _PACKAGE.parent / "configs"
CONFIGS = _WITHIN if _WITHIN.is_dir() else _BESIDE
MODELS = ("tiny_clip", "tiny_blip")


def packaged(path: str) -> str:
    """The path itself if there is such a file, else the file of that name which is packaged.

    `msrvtt`, `msrvtt.py` and `configs/msrvtt.py` name the same, as do `benchmark/demo` and so on. A
    path that names nothing comes back as it is.
    """
    if pathlib.Path(path).is_file():
        return path
    name = path.removeprefix("configs/")
    for place in (CONFIGS / name, CONFIGS / f"{name}.py"):
        if place.is_file():
            return str(place)
    return path


def model(place: str) -> str:
    """The directory of a tiny model, such as `tiny_clip`; another place, or one there, as it is."""
    if place in MODELS and not pathlib.Path(place).exists():
        return str(_PACKAGE / "assets" / place)
    return place


def names() -> list[str]:
    """What `packaged` knows of experiments: `msrvtt`, `demo`, ..."""
    return sorted(path.stem for path in CONFIGS.glob("*.py"))


def did_you_mean(path: str) -> str:
    """The packaged configs whose names are close to a path's, as the end of a message."""
    close = difflib.get_close_matches(pathlib.PurePath(path).stem, names(), 3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def models_hint(place: str) -> str:
    """The tiny models, as the end of a message that tells what a backbone may be."""
    close = difflib.get_close_matches(pathlib.PurePath(place).name, MODELS, 1)
    meant = f"did you mean {close[0]}? " if close else ""
    return f"{meant}To try things there are {' and '.join(MODELS)}, which know only coloured shapes"


def with_packaged(argv: Sequence[str]) -> list[str]:
    """A command line whose --config names a file: `--config=msrvtt:method=lora`, too."""
    return [
        _found(argument)
        if place and argv[place - 1] in ("--config", "-config")
        else _flag(argument)
        for place, argument in enumerate(argv)
    ]


def _flag(argument: str) -> str:
    match = re.match("(--?config=)(.*)", argument, re.DOTALL)
    return match[1] + _found(match[2]) if match else argument


def _found(value: str) -> str:
    path, colon, rest = value.partition(":")
    return packaged(path) + colon + rest
