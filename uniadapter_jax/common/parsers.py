"""The parser of a command that takes its flags by argparse."""

from __future__ import annotations

import argparse

import uniadapter_jax


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m uniadapter_jax.<name>`; its help shows the module's docstring."""
    parser = argparse.ArgumentParser(
        prog=f"python -m uniadapter_jax.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=uniadapter_jax.__version__)
    return parser
