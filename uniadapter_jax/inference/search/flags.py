"""The flags that say which index a command opens, and with which model."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from shlex import quote

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.inference.search.index import Index
from uniadapter_jax.weights.directory import check_place
from uniadapter_jax.weights.hub.fetch import located
from uniadapter_jax.weights.hub.names import hub_name
from uniadapter_jax.weights.needed import BACKBONE


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `open_index`, beside INDEX."""
    add = parser.add_argument
    add("--approximate", action="store_true", help="search what `index --approximate` made")
    add("--backbone", metavar="DIR", help="of the index, if it has moved")
    add("--adapter", metavar="DIR", help="of the index, or its run, if it has moved")


def is_run(place: str | None) -> bool:
    """Whether a place is the workdir of a run, whose adapter is to be exported first."""
    return bool(place) and os.path.exists(os.path.join(str(place), "identity.json"))


def open_index(arguments: argparse.Namespace) -> Index:
    """The index that the arguments name; what its user should know goes to stderr."""
    if arguments.backbone:
        check_place(located(arguments.backbone, "--backbone", BACKBONE).directory, "--backbone")
    if arguments.adapter and hub_name(arguments.adapter) is None:
        if not os.path.isdir(arguments.adapter):
            raise UserError(f"--adapter={arguments.adapter}: there is no such directory")
    index = Index.open(
        arguments.index,
        backbone=arguments.backbone,
        adapter=arguments.adapter,
        approximate=arguments.approximate,
    )
    for line in notes(index):
        print(line, file=sys.stderr, flush=True)
    return index


def notes(index: Index) -> Iterator[str]:
    """What makes answers of an index less than they should be, a line each."""
    if index.unfinished:
        yield (
            f"{index.path} is unfinished: `index` was stopped, or is at work, so that clips are "
            "missing; run the `index` command again"
        )
    if not os.path.isdir(index.root):
        yield (
            f"{index.root}, the folder that was indexed, is not there, so paths lead nowhere; if "
            f"it has moved, run `index` with --input=FOLDER --output={quote(str(index.path))}"
        )
