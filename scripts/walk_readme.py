"""Runs the commands of README.md as they stand, in an empty folder; CI calls it.

    python scripts/walk_readme.py [README.md]

Every block of commands (bash, python) has a comment ahead of it: `<!-- walk: run -->`, or
`<!-- walk: skip: WHY -->`. What a reader puts in is put in: 30 clips for MY_CLIPS, the tiny CLIP
of the package for weights that would be downloaded. The first command that fails ends it.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from uniadapter_jax.common.errors import UserError, plain_command
from uniadapter_jax.data.preparation import toy

ROOT = pathlib.Path(__file__).parent.parent
CLIPS = 30
OWN = "--config=own"
PUT_IN = {  # in this order
    OWN: f"{OWN}:backbone=tiny_clip --config.data.words=24 --config.train.epochs=3",
    "openai/clip-vit-base-patch32": "tiny_clip",
}
_BLOCK = re.compile(
    r"(?:^<!-- walk: ([^\n]*) -->\n)?^```(bash|python)\n(.*?)^```", re.DOTALL | re.MULTILINE
)


@dataclasses.dataclass(frozen=True)
class Block:
    """Commands, and what is to be done with them: "run" or "skip: WHY"."""

    walk: str
    language: str
    text: str


def blocks(readme: str) -> list[Block]:
    """All blocks of commands; raises `UserError` if one does not say whether it is run."""
    found = [Block(match[1] or "", match[2], match[3]) for match in _BLOCK.finditer(readme)]
    for block in found:
        if not re.fullmatch("run|skip: .+", block.walk):
            raise UserError(f"no <!-- walk: run --> or skip: WHY ahead of\n{block.text}")
    return found


def draw_clips(folder: pathlib.Path) -> None:
    """Films with captions beside them, as a reader has them."""
    for _ in toy.write_clips(str(folder), CLIPS, 0):
        pass
    manifest = folder / "manifest.jsonl"
    for line in map(json.loads, manifest.read_text().splitlines()):
        beside = (folder / line["path"]).with_suffix(".txt")
        beside.write_text("".join(f"{caption}\n" for caption in line["captions"]))
    manifest.unlink()


def run(block: Block, place: pathlib.Path) -> None:
    """Runs a block; raises `UserError` if a command fails."""
    text = block.text
    for theirs, ours in PUT_IN.items():
        text = text.replace(theirs, ours)
    command = ["bash", "-euxo", "pipefail", "-c", text]
    if block.language == "python":
        command = [sys.executable, "-c", text]
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
    began = time.monotonic()
    done = subprocess.run(command, cwd=place, env={**os.environ, "PATH": path}, check=False)
    if done.returncode:
        raise UserError(f"status {done.returncode}:\n{text}")
    print(f"-- {time.monotonic() - began:.0f} s", flush=True)


@plain_command
def main(arguments: Sequence[str] | None = None) -> int:
    """Walks through the file."""
    arguments = sys.argv[1:] if arguments is None else arguments
    readme = pathlib.Path(arguments[0]) if arguments else ROOT / "README.md"
    with tempfile.TemporaryDirectory() as scratch:
        place = pathlib.Path(scratch)
        (place / "MY_CLIPS").mkdir()
        draw_clips(place / "MY_CLIPS")
        for block in blocks(readme.read_text(encoding="utf-8")):
            if block.walk == "run":
                run(block, place)
            else:
                print(f"-- {block.walk}: {block.text.splitlines()[0]}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
