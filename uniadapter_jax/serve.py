"""Shows an index as a page and a JSON endpoint on this machine.

    python -m uniadapter_jax.serve INDEX [--port=8000]

Open the address that it prints: search by words or by a picture, and play what was found from its
second. Only files of the index are served. See docs/search.md.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence

from uniadapter_jax.common.errors import UserError, plain_command
from uniadapter_jax.common.parsers import command_parser
from uniadapter_jax.inference.search.flags import add_flags, is_run, open_index
from uniadapter_jax.parallel import launch
from uniadapter_jax.runs.files import read_run

EVERYWHERE = ("0.0.0.0", "::")


def serve(arguments: argparse.Namespace) -> None:
    """Serves the index that the flags name until a signal comes."""
    try:
        from uniadapter_jax.inference.serving import app, guard, server
    except ImportError as error:
        raise UserError(
            f"`serve` needs {error.name}: pip install 'uniadapter_jax[serve]'"
        ) from error
    if is_run(arguments.adapter):
        from uniadapter_jax.export import exported  # behind JAX, which it would keep on the CPU

        arguments.adapter = exported(read_run(arguments.adapter))
    index = open_index(arguments)
    host = arguments.host
    with server.listen(host, arguments.port) as bound:
        app.warm(index)
        print(f"{len(index)} clips at {server.address(bound)}", flush=True)
        hosts = None if host in EVERYWHERE else {*guard.HERE, host.lower()}
        server.server_of(app.make_app(index, hosts)).run([bound])


@functools.partial(plain_command, stopped="stopped")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = command_parser("serve", __doc__)
    add = parser.add_argument
    add("index", metavar="INDEX", help="what `python -m uniadapter_jax.index` wrote")
    add("--host", default="127.0.0.1", help="address to serve at; default: only this machine")
    add("--port", type=int, default=8000, help="0 is any free one; default: 8000")
    add_flags(parser)
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.port <= 65_535:
        raise UserError(f"--port={arguments.port}: from 0 to 65535")
    launch.use_compile_cache()
    serve(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
