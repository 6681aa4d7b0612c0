"""Finds clips in an index by words, or by a picture.

    python -m uniadapter_jax.search INDEX "a red car turns left" [-k 10] [--json]
    python -m uniadapter_jax.search INDEX --image=FILE

Each line is a clip: its score, its seconds, its path. With a BLIP, --rerank=50 matches the best 50
again, each with the text, and --ask="what is it doing?" asks about each clip that is shown. See
docs/search.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from uniadapter_jax.common.errors import UserError, plain_command
from uniadapter_jax.common.parsers import command_parser
from uniadapter_jax.common.progress import duration
from uniadapter_jax.common.terminal import visible
from uniadapter_jax.inference.search.flags import add_flags, is_run, open_index
from uniadapter_jax.inference.search.index import Hit
from uniadapter_jax.parallel import launch
from uniadapter_jax.runs.files import read_run


def table(hits: Sequence[Hit]) -> str:
    """The hits as aligned lines; names of files are made safe to show."""
    lines = []
    for place, hit in enumerate(hits, 1):
        score = f"{hit.score:8.4f}" if math.isfinite(hit.score) else f"{'-':>8}"
        line = f"{place:4d} {score}  {seconds(hit):>15}  {visible(hit.path, 4096)}"
        line += f"  [{visible(hit.answer)}]" if hit.answer else ""
        lines.append(line + (f"  ({visible(hit.reason)})" if hit.reason else ""))
    return "\n".join(lines)


def seconds(hit: Hit) -> str:
    """From when to when a clip goes; of a picture nothing."""
    if hit.start is None or hit.end is None:
        return ""
    return f"{duration(hit.start)}-{duration(hit.end)}"


def as_json(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """The hits as JSON; a clip that could not be matched has the score null."""
    return [{**vars(hit), "score": hit.score if math.isfinite(hit.score) else None} for hit in hits]


def _unknown(arguments: argparse.Namespace, rest: Sequence[str]) -> str:
    """What to do about arguments that are neither a flag nor the one text."""
    if any(word.startswith("-") for word in rest):
        return (
            f"unknown: {' '.join(rest)}; see --help. Words that begin with a dash stand behind --: "
            f"{shlex.join(['search', arguments.index, '--', ' '.join(rest)])}"
        )
    text = " ".join(filter(None, [arguments.text, *rest]))
    return f"put the words in quotes: {shlex.join(['search', arguments.index, text])}"


@functools.partial(plain_command, stopped="stopped")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = command_parser("search", __doc__)
    add = parser.add_argument
    add("index", metavar="INDEX", help="what `python -m uniadapter_jax.index` wrote")
    add("text", nargs="?", metavar="TEXT", help="what to look for, in words")
    add("--image", metavar="FILE", help="look for what resembles this picture")
    add("-k", type=int, default=10, metavar="N", help="clips to show; default: 10")
    add("--rerank", type=int, default=0, metavar="N", help="match the best N again (BLIP)")
    add("--ask", default="", metavar="QUESTION", help="about each clip (BLIP with a decoder)")
    add("--json", action="store_true", help='print {"hits": [...]} instead')
    add_flags(parser)
    arguments, rest = parser.parse_known_args(argv)
    if rest:
        raise UserError(_unknown(arguments, rest))
    if arguments.k < 1:
        raise UserError(f"-k {arguments.k}: at least 1")
    if arguments.text is not None and not arguments.text.strip():
        raise UserError("the query is empty: say in words what to look for, or pass --image=FILE")
    launch.use_compile_cache()
    if is_run(arguments.adapter):
        from uniadapter_jax.export import exported  # behind JAX, which it would keep on the CPU

        arguments.adapter = exported(read_run(arguments.adapter))
    index = open_index(arguments)
    hits = index.search(
        arguments.text,
        image=arguments.image,
        k=arguments.k,
        rerank=arguments.rerank,
        ask=arguments.ask,
    )
    if arguments.text and (note := index.cut(arguments.text)):
        print(note, file=sys.stderr)
    print(json.dumps({"hits": as_json(hits)}, indent=2) if arguments.json else table(hits))
    return 0


if __name__ == "__main__":
    sys.exit(main())
