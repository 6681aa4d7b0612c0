"""Shows what is stored in records, or what a run retrieves: a sheet to look at.

    python -m uniadapter_jax.look RECORDS [--split=test] [--id=NAME ...] [--output=sheet.html]
    python -m uniadapter_jax.look WORKDIR [--beside=OTHER] [--output=sheet.png]

Of records, a contact sheet with times and captions: a sheet ending in .png is a picture, one in
.html a page that needs no other file. Without --id the first --count clips are shown.

Of a finished run, the texts that it ranks best and worst above the clips that they find, the right
one outlined; with another run beside it, those whose ranks differ most.
"""

from __future__ import annotations

import io
import os
import pathlib
import sys
from collections.abc import Sequence

from uniadapter_jax.common.errors import UserError, plain_command
from uniadapter_jax.common.files import write_whole
from uniadapter_jax.common.parsers import command_parser
from uniadapter_jax.data.prepared import splits_of
from uniadapter_jax.data.records import Records, open_records
from uniadapter_jax.inference.contact_sheet import draw_sheet, html_sheet


def look(root: str, split: str, ids: Sequence[str], count: int, output: str) -> str:
    """Writes the sheet; returns a line about it.

    Raises:
      UserError: no such records, split or clip; an output of another kind; or damage.
    """
    kind = os.path.splitext(output)[1].lower()
    if kind not in (".png", ".html"):
        raise UserError(f"--output={output}: a name that ends with .png or .html is meant")
    names = splits_of(root)
    if not names:
        raise UserError(f"{root} holds no records of `prepare`, and no run of `main`")
    records = open_records(root, split or ",".join(names))
    chosen = _chosen(records, ids, count)
    title = f"{records.split} of {os.path.abspath(root)}: {len(chosen)} of {len(records)} clips"
    clips = [records.read(i) for i in chosen]
    if kind == ".html":
        _write(output, html_sheet(title, clips).encode("utf-8", "replace"))
    else:
        picture = io.BytesIO()
        draw_sheet(title, clips).save(picture, "PNG")
        _write(output, picture.getvalue())
    return f"wrote {output}: {title}; its splits: {', '.join(names)}"


def _chosen(records: Records, ids: Sequence[str], count: int) -> list[int]:
    if not ids:
        return list(range(min(count, len(records))))
    places = {name: i for i, name in enumerate(records.ids)}
    for name in ids:
        if name not in places:
            raise UserError(
                f"--id={name}: {records.root} has no such clip in {records.split!r}"
                f"{_elsewhere(records, name)}"
            )
    return [places[name] for name in ids]


def _elsewhere(records: Records, id: str) -> str:
    """The splits that do have a clip, as the end of a message."""
    root, shown = records.root, records.split.split(",")
    others = [name for name in splits_of(root) if name not in shown]
    found = [name for name in others if id in open_records(root, name).ids]
    return f"; it is in {', '.join(found)}" if found else ""


def _write(output: str, data: bytes) -> None:
    """Writes a sheet; its directory is made if need be."""
    folder = pathlib.Path(output).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output={output}: {folder} cannot be made: {error.strerror}; name another"
        ) from error
    write_whole(output, data)


def look_at_run(workdir: str, beside: str | None, count: int, output: str) -> str:
    """Writes the picture; returns a line about it.

    Raises:
      UserError: an output of another kind, or what `draw_best_and_worst` says.
    """
    from uniadapter_jax.inference.retrieved import draw_best_and_worst  # records need no JAX

    if os.path.splitext(output)[1].lower() != ".png":
        raise UserError(f"--output={output}: of a run it is a picture; a name that ends with .png")
    other = None if beside is None else pathlib.Path(beside)
    picture = io.BytesIO()
    draw_best_and_worst(pathlib.Path(workdir), max(1, count // 2), other).save(picture, "PNG")
    _write(output, picture.getvalue())
    return f"wrote {output}"


@plain_command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = command_parser("look", __doc__)
    add = parser.add_argument
    add("place", metavar="RECORDS|WORKDIR", help="what `prepare`, or what `main` wrote")
    add("--split", default="", help="split to show; default: all")
    add("--id", action="append", default=[], metavar="NAME", help="clip to show; may be repeated")
    add("--count", type=int, default=20, metavar="N", help="clips, or texts of a run (20)")
    add("--beside", metavar="WORKDIR", help="another run on the same test")
    add("--output", metavar="FILE", help="default: sheet.html, of a run sheet.png")
    arguments = parser.parse_args(argv)
    if arguments.count < 1:
        raise UserError(f"--count={arguments.count}: at least 1")
    place, output = arguments.place, arguments.output
    if os.path.exists(os.path.join(place, "identity.json")):
        if arguments.split or arguments.id:
            raise UserError(f"--split and --id are of records, and {place} is a run")
        said = look_at_run(place, arguments.beside, arguments.count, output or "sheet.png")
    elif arguments.beside is not None:
        raise UserError(f"--beside is of runs, and {place} is no workdir of one")
    else:
        said = look(place, arguments.split, arguments.id, arguments.count, output or "sheet.html")
    print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
