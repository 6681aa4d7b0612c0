"""Converts foreign weights to a backbone directory for the other commands and transformers.

    python -m uniadapter_jax.convert SOURCE DEST [--tokenizer PATH] [--image-size N]

SOURCE is a directory, a file, or OWNER/NAME[@REVISION] of a repository on the hub: HuggingFace
CLIP, BLIP or SigLIP (safetensors or .bin, sharded or not), open_clip (with open_clip_config.json
beside the weights), OpenAI's ViT-B-32.pt and similar, any torch or safetensors file with OpenAI's
tensor names, BLIP's own .pth (pre-trained, retrieval, VQA), or a checkpoint of Cross-Modal Adapter
or of UniAdapter, whose adapters go to DEST/adapter.
Nothing in a torch file is executed, and torch is not needed.

DEST gets config.json, model.safetensors, the tokenizer's files, and fingerprint.json and
digests.json, by which loading detects damage. It appears when it is complete; a directory that is
not empty is refused. See docs/weights.md.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence

# JAX only computes shapes here, so no accelerator should be taken.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from uniadapter_jax.backbones.functions import ACTIVATIONS
from uniadapter_jax.common.digests import check_digests
from uniadapter_jax.common.errors import UserError, plain_command
from uniadapter_jax.common.new_directory import new_directory
from uniadapter_jax.common.parsers import command_parser
from uniadapter_jax.weights.adapter_directory import AdapterFiles, write_adapter
from uniadapter_jax.weights.directory import (
    check_fingerprint,
    huggingface_shapes,
    raise_problems,
    seal_backbone,
    write_backbone,
)
from uniadapter_jax.weights.families import Config, family_of
from uniadapter_jax.weights.fingerprint import combine, digest, fingerprint, workers
from uniadapter_jax.weights.hub.fetch import located
from uniadapter_jax.weights.names.rules import Context, convert
from uniadapter_jax.weights.needed import SOURCE
from uniadapter_jax.weights.sources import NO_HINTS, Hints, Source, open_source
from uniadapter_jax.weights.tokenizer_files import provide_tokenizer

_PROGRESS_FROM = 2**28  # bytes; smaller conversions end before a line could be read
_MARGIN = 2**20  # bytes of config, tokenizer and headers


def convert_weights(
    source: str,
    destination: str,
    *,
    tokenizer: str | None = None,
    image_size: int | None = None,
    hints: Hints = NO_HINTS,
) -> str:
    """Converts `source` to a new backbone directory and returns its fingerprint.

    Raises:
      UserError: the source cannot be read, the destination is not empty, or tensors do not fit
        (all in one report). Nothing is left behind.
    """
    weights = open_source(located(source, "SOURCE", SOURCE).directory, hints)
    if weights.ours:
        _check_source(weights)
    config = _resized(weights.config, image_size)
    grid = config.image_size // config.patch_size if image_size else None
    tensors, problems = convert(
        weights.tensors,
        weights.rules,
        huggingface_shapes(config),
        ignored=weights.ignored,
        context=Context(grid),
    )
    if weights.adapter is not None:
        problems += weights.adapter.problems
    raise_problems(source, problems)
    total = sum(tensor.nbytes for tensor in tensors.values())
    with new_directory(destination) as folder:
        free = shutil.disk_usage(folder).free
        if free < total + _MARGIN:
            raise UserError(f"{destination}: {total + _MARGIN} bytes are needed, {free} are free")
        with workers() as pool:
            digests = pool.map(lambda pair: (pair[0], digest(*pair)), tensors.items())
            write_backbone(folder, config, tensors, _progress(total))
            combined = combine(digests, config)
        if (foreign := weights.adapter) is not None:
            adapter = AdapterFiles(foreign.method, foreign.options, foreign.tensors, combined)
            write_adapter(folder / "adapter", adapter)
        family = family_of(config)
        note = provide_tokenizer(tokenizer, weights.folder, folder, config.vocab_size, family)
        seal_backbone(folder, {"fingerprint": combined, "converted_from": weights.kind})
    print(f"{weights.kind} -> {destination}: {_describe(config)}; {note}", file=sys.stderr)
    return combined


def _check_source(source: Source) -> None:
    """Raises `UserError` if a directory that we wrote has changed since."""
    check_digests(source.folder)
    tensors, problems = convert(
        source.tensors, source.rules, huggingface_shapes(source.config), ignored=source.ignored
    )
    if not problems:  # else the caller reports them
        check_fingerprint(source.folder, fingerprint(tensors.items(), source.config))


def _resized(config: Config, image_size: int | None) -> Config:
    return config if image_size is None else dataclasses.replace(config, image_size=image_size)


def _describe(config: Config) -> str:
    v, t = config.vision, config.text
    return (
        f"vision {v.layers} x {v.width} ({v.heads} heads, patches of {config.patch_size}, pictures "
        f"of {config.image_size}), text {t.layers} x {t.width} ({t.heads} heads), {v.activation}"
    )


def _progress(total: int) -> Callable[[int], None]:
    """A function to call with bytes written, which prints the progress once a second."""
    done, last = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if total >= _PROGRESS_FROM and (done >= total or time.monotonic() - last > 1):
            last = time.monotonic()
            print(f"converted {done / 1e6:.0f} of {total / 1e6:.0f} MB", file=sys.stderr)

    return advance


def _heads(text: str) -> tuple[int, int]:
    vision, text_heads = map(int, text.split(","))
    return vision, text_heads


@plain_command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = command_parser("convert", __doc__)
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("destination", metavar="DEST")
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="a directory, OpenAI's bpe_simple_vocab_16e6.txt.gz, or BERT's vocab.txt",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="pictures of NxN: position embeddings are interpolated (bicubic, as torch does)",
    )
    parser.add_argument(
        "--activation",
        choices=sorted(ACTIVATIONS),
        help="of files without a config; the default is quick_gelu (OpenAI), gelu (BLIP), and none "
        "for open_clip's own files, which may have either",
    )
    parser.add_argument(
        "--heads",
        type=_heads,
        metavar="VISION,TEXT",
        help="of files without a config; the default is width / 64",
    )
    args = parser.parse_args(argv)
    fingerprint = convert_weights(
        args.source,
        args.destination,
        tokenizer=args.tokenizer,
        image_size=args.image_size,
        hints=Hints(args.activation, args.heads),
    )
    print(fingerprint)
    return 0


if __name__ == "__main__":
    sys.exit(main())
