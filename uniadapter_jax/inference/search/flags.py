"""The flags that say which index a command opens, and with which model."""

from __future__ import annotations

import argparse

from uniadapter_jax.inference.search.index import Index


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `open_index`, beside INDEX."""
    add = parser.add_argument
    add("--approximate", action="store_true", help="search what `index --approximate` made")
    add("--backbone", metavar="DIR", help="of the index, if it has moved")
    add("--adapter", metavar="DIR", help="of the index, if it has moved")


def open_index(arguments: argparse.Namespace) -> Index:
    """The index that the arguments name."""
    return Index.open(
        arguments.index,
        backbone=arguments.backbone,
        adapter=arguments.adapter,
        approximate=arguments.approximate,
    )
