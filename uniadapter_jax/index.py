"""Makes an index of a folder of videos and pictures, to be searched; no captions are needed.

    python -m uniadapter_jax.index --input=FOLDER --output=INDEX --backbone=DIR [--adapter=DIR]
    python -m uniadapter_jax.index --input=FOLDER --output=INDEX

DIR is a directory, or OWNER/NAME[@REVISION] of a repository on the HuggingFace hub; --backbone also
takes tiny_clip and tiny_blip, which come with the package to try things and know only coloured
shapes, and --adapter the workdir of a finished run, which is exported to WORKDIR/adapter-STEP.
Every video and picture below FOLDER is encoded as the adapter was trained: which frames, how they
are scaled, how they are compared. --window=10 --stride=5 adds windows of 10 seconds that begin
every 5 to each video. The same command brings an index up to date: only new, changed and removed
files cost anything. Stopped or killed, it goes on where it was. Files that cannot be read are
listed in INDEX/report.json. Several processes index together with the flags of `main`
(--coordinator, --num-processes, --process-id). See docs/search.md.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Sequence

import jax

from uniadapter_jax.common.cores import usable_cores
from uniadapter_jax.common.errors import UserError, plain_command
from uniadapter_jax.common.packaged import models_hint
from uniadapter_jax.common.parsers import command_parser
from uniadapter_jax.common.progress import on_terminal
from uniadapter_jax.common.shares import Share
from uniadapter_jax.common.terminal import count_of, visible
from uniadapter_jax.inference.clip_files import Windows
from uniadapter_jax.inference.clip_options import ClipOptions
from uniadapter_jax.inference.load import load_model
from uniadapter_jax.inference.search.approximate import is_there
from uniadapter_jax.inference.search.building import REPORT, Team, build
from uniadapter_jax.inference.search.description import DTYPES, NAME, read_description
from uniadapter_jax.inference.search.folder import media_of
from uniadapter_jax.inference.search.index import Index
from uniadapter_jax.parallel import launch
from uniadapter_jax.runs.files import Run, read_run
from uniadapter_jax.runs.workdir import holding
from uniadapter_jax.weights.directory import check_place
from uniadapter_jax.weights.hub.fetch import located
from uniadapter_jax.weights.needed import ADAPTER, BACKBONE

SHOWN = 5  # bad files that are named; report.json has all


def index(arguments: argparse.Namespace) -> None:
    """Makes or updates the index that the flags describe."""
    windows, output = _windows(arguments), pathlib.Path(arguments.output)
    if arguments.threads < 1:
        raise UserError(f"--threads={arguments.threads}: at least 1")
    media_of(arguments.input)
    there = read_description(output) if (output / NAME).exists() else None
    backbone = arguments.backbone or (there.backbone if there else "")
    adapter = arguments.adapter or (there.adapter if there else "")
    if adapter and pathlib.Path(adapter, "identity.json").exists():
        run = read_run(adapter)
        backbone = arguments.backbone or str(run.config["backbone"])
        adapter = _exported(run)
    if not backbone:
        raise UserError(f"--backbone=DIR is missing: a new index needs a model. {models_hint('')}")
    backbone, directory = located(backbone, "--backbone", BACKBONE)
    check_place(directory, "--backbone")
    adapter = located(adapter, "--adapter", ADAPTER).place
    merge = there.made.get("clips.merge") if there and arguments.merge is None else arguments.merge
    model = load_model(backbone, adapter or None, batch_size=arguments.batch_size, merge=merge)
    options = model.clips
    if options.assumed and there is None and not jax.process_index():
        print(_assumed(options), file=sys.stderr)
    model.devices = jax.local_devices()
    first = not jax.process_index()
    team = Team(Share(jax.process_index(), jax.process_count()), lambda: launch.exchange(None))
    with holding(output, "index") if first else contextlib.nullcontext():
        report = build(
            arguments.input,
            output,
            model,
            places=(backbone, adapter),
            windows=windows,
            dtype=arguments.dtype,
            threads=arguments.threads,
            say=on_terminal if first else lambda line: None,
            team=team,
        )
        if first and (arguments.approximate or is_there(output)):
            _make_approximate(output)
    if not first:
        return
    if sys.stderr.isatty():
        print(file=sys.stderr)
    clips = count_of(report["clips"], "clip")
    print(f"{output}: {clips} of {count_of(report['files'], 'file')}")
    if bad := report["bad_files"]:
        rest = f"; {output / REPORT} lists them all" if bad > SHOWN else f" ({output / REPORT})"
        print(f"{count_of(bad, 'file')} cannot be used{rest}:")
        for line in report["bad"][:SHOWN]:
            why = ": ".join(filter(None, (line["reason"], line["detail"])))
            print(f"  {visible(line['path'], 4096)}: {visible(why)}")


def _assumed(options: ClipOptions) -> str:
    """What a new index takes by default, in a sentence."""
    if "frames" not in options.assumed:  # an adapter of an earlier version
        return f"The adapter does not say {', '.join(options.assumed)}: the usual values count."
    return (
        f"Frames are taken as usual, as no adapter says how: {options.frames} of each film "
        f"({options.sampling}), {options.stored.short_side} pixels."
    )


def _exported(run: Run) -> str:
    """The adapter of a finished run, exported into its workdir by the first process, once."""
    # Behind JAX, which it would keep on the CPU.
    from uniadapter_jax.export import adapter_place, exported

    to = adapter_place(run)
    if not jax.process_index():
        exported(run)
    launch.exchange(None)
    return str(to)


def _make_approximate(output: pathlib.Path) -> None:
    recall = Index.open(output).make_approximate(on_terminal)
    if recall is not None:
        print(f"approximate search finds {recall:.1%} of the exact 10 best, with clips as queries")


def _windows(arguments: argparse.Namespace) -> Windows | None:
    """The windows of the flags, None where there are none."""
    window, stride = arguments.window, arguments.stride
    if window is None:
        if stride is not None:
            raise UserError(f"--stride={stride:g} is of windows: pass --window=SECONDS, too")
        return None
    stride = window if stride is None else stride  # end to end, as `prepare`
    if not 0.1 <= stride <= window <= 86_400:
        raise UserError(
            f"--window={window:g} --stride={stride:g}: seconds, at least .1, a stride no longer "
            "than the window"
        )
    return Windows(window, stride)


@plain_command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = command_parser("index", __doc__)
    add = parser.add_argument
    add("--input", required=True, metavar="FOLDER", help="folder of videos and pictures")
    add("--output", required=True, metavar="INDEX", help="directory of the index")
    add("--backbone", metavar="DIR", help="or OWNER/NAME, or tiny_clip; default: of the index")
    add(
        "--adapter", metavar="DIR", help="what `export` wrote, or a run; default: that of the index"
    )
    add("--window", type=float, metavar="SECONDS", help="also index windows of this length")
    add(
        "--stride", type=float, metavar="SECONDS", help="from window to window; default: end to end"
    )
    add("--dtype", choices=DTYPES, default=DTYPES[0], help="of the stored features")
    add("--threads", type=int, default=usable_cores(), help="that decode")
    add("--merge", type=int, help="tokens of a picture that every layer of a CLIP merges")
    add("--batch-size", type=int, default=64, help="frames that are encoded at once")
    add("--approximate", action="store_true", help="also an approximate index of very many clips")
    launch.add_arguments(parser)
    arguments = parser.parse_args(argv)
    with launch.processes(launch.Group.of_arguments(arguments)):
        launch.use_compile_cache()
        index(arguments)
        launch.end_processes()
    return 0


if __name__ == "__main__":
    sys.exit(main())
