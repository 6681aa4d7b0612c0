"""The commands, one after another as a project meets them.

uniadapter COMMAND ...                  where the package is installed
python -m uniadapter_jax COMMAND ...    everywhere; so does python -m uniadapter_jax.COMMAND ...
"""

from __future__ import annotations

import ast
import difflib
import pathlib
import runpy
import sys
from collections.abc import Sequence

import uniadapter_jax

COMMANDS = (
    *("demo", "prepare", "look", "main", "compare", "export", "convert", "index", "search"),
    *("serve", "benchmark", "plan"),
)
HELP = ("-h", "--help", "help")


def overview() -> str:
    """A line for each command: what its module says of itself first."""
    lines = [f"  {name:<10} {_what(name)}" for name in COMMANDS]
    return "\n".join([str(__doc__), *lines, "", "uniadapter COMMAND --help says more."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Starts the command that the first argument names; without one, lists them."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in HELP:
        print(overview())
        return 0
    if arguments[0] == "--version":
        print(uniadapter_jax.__version__)
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        print(f"error: no command {name}; {hint}there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    sys.argv = [f"uniadapter {name}", *rest]
    runpy.run_module(f"uniadapter_jax.{name}", run_name="__main__", alter_sys=True)
    return 0


def _what(name: str) -> str:
    place = pathlib.Path(__file__).parent / name
    file = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
