"""Splits pictures of Karpathy's layout into two sets by their names: to train on, and to adapt to.

    python scripts/split_pictures.py PICTURES google PRETRAIN twitter PICTURES_OUT NEGATIVES

writes manifest.jsonl for each prefix of file names. Of the first set all pictures train but a
twentieth, the split `test`. Of the second half are `test`, a twentieth `val`, the others `train`,
by a hash of the name: so the test is large enough to tell methods apart. NEGATIVES gets the second
set with all colours inverted, which a backbone that has learnt the first set does not know.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import hashlib
import json
import pathlib
import sys
from collections.abc import Iterable, Sequence

from PIL import Image, ImageOps

from uniadapter_jax.common.errors import UserError, plain_command
from uniadapter_jax.common.files import write_whole
from uniadapter_jax.data.sources import read_source

PRETRAINING = {"test": 0.05}  # shares of the splits beside train, in this order
ADAPTATION = {"test": 0.5, "val": 0.05}


def split_of(name: str, shares: dict[str, float]) -> str:
    """The split of a picture."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    for split, share in shares.items():
        if place < share:
            return split
        place -= share
    return "train"


def negative_of(picture: Image.Image) -> Image.Image:
    """The picture with dark for light and each colour's opposite, on black paper."""
    paper = Image.new("RGBA", picture.size, "white")
    paper.alpha_composite(picture.convert("RGBA"))
    return ImageOps.invert(paper.convert("RGB"))


def write_set(out: pathlib.Path, lines: Sequence[dict[str, object]]) -> None:
    """Writes the manifest of a set."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "manifest.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    print(f"{out}: {len(lines)} pictures", file=sys.stderr)


def inverted(lines: Iterable[dict[str, object]], out: pathlib.Path) -> list[dict[str, object]]:
    """The lines with negatives, which are written below `out`, in place of pictures."""
    folder = out.absolute() / "media"
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for line in lines:
        path = folder / f"{line['id']}.png"
        with Image.open(str(line["path"])) as picture:
            negative_of(picture).save(path)
        made.append({**line, "path": str(path)})
    return made


@plain_command
def main(arguments: Sequence[str] | None = None) -> int:
    """Writes all manifests."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 6:
        raise UserError(f"six arguments are meant, as in\n{__doc__}")
    pictures, *pairs, negatives = arguments
    source = read_source("karpathy", pictures)
    root = pathlib.Path(source.root).absolute()
    lines: list[dict[str, object]] = []
    for (prefix, out), shares in zip(
        (pairs[:2], pairs[2:]), (PRETRAINING, ADAPTATION), strict=True
    ):
        lines = [
            {
                "id": pathlib.Path(item.path).stem,
                "path": str(root / item.path),
                "captions": list(item.captions),
                "split": split_of(pathlib.Path(item.path).name, shares),
            }
            for item in source.items
            if pathlib.Path(item.path).name.startswith(prefix)
        ]
        write_set(pathlib.Path(out), lines)
    write_set(pathlib.Path(negatives), inverted(lines, pathlib.Path(negatives)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
