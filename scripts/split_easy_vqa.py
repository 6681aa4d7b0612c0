"""Splits easy-VQA into two tasks: to learn it, and to adapt to the same with colours inverted.

    python scripts/split_easy_vqa.py EASY_VQA/data data/easy-vqa/pretrain data/easy-vqa/adapt

writes two folders in easy-VQA's layout. The first has the training pictures of even number and the
test pictures, with their questions; the second the training pictures of odd number and the test
pictures, with all colours inverted. Questions and answers stay as they are: what is called red has
red's opposite there, on a dark ground.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import json
import pathlib
import sys
from collections.abc import Sequence

from PIL import Image, ImageOps

from uniadapter_jax.common.errors import UserError, plain_command
from uniadapter_jax.common.files import write_whole
from uniadapter_jax.data.sources.easy_vqa import QUESTIONS, SPLITS

PICTURES = "images"


def write_split(data: pathlib.Path, folder: pathlib.Path, split: str, half: int) -> None:
    """Writes a split of a folder, of training the pictures whose number leaves `half` by 2."""
    source, target = data / split / QUESTIONS, folder / split
    (target / PICTURES).mkdir(parents=True, exist_ok=True)
    try:
        questions = json.loads(source.read_text())
        kept = [asked for asked in questions if split == "test" or asked[2] % 2 == half]
        for name in sorted({f"{asked[2]}.png" for asked in kept}):
            picture = Image.open(data / split / PICTURES / name).convert("RGB")
            (ImageOps.invert(picture) if half else picture).save(target / PICTURES / name)
    except OSError as error:
        raise UserError(f"{error.filename or data}: {error.strerror or error}") from error
    write_whole(target / QUESTIONS, json.dumps(kept))
    print(f"{target}: {len(kept)} of {len(questions)} questions", file=sys.stderr)


@plain_command
def main(arguments: Sequence[str] | None = None) -> int:
    """Writes both folders."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 3:
        raise UserError(f"three arguments are meant, as in\n{__doc__}")
    data, *folders = map(pathlib.Path, arguments)
    for half, folder in enumerate(folders):
        for split in SPLITS:
            write_split(data, folder, split, half)
    return 0


if __name__ == "__main__":
    sys.exit(main())
