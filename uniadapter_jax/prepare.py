"""Turns annotations and media files into records; run again, it takes up what has changed.

    python -m uniadapter_jax.prepare --config=configs/msrvtt.py --input=RAW_DIR --output=RECORDS_DIR

    python -m uniadapter_jax.prepare --from-folder=MY_CLIPS
    python -m uniadapter_jax.prepare --from-folder=MY_CLIPS --config=configs/own.py

The second writes MY_CLIPS/manifest.jsonl, to be looked through and edited. The third does so, too,
and makes the records. When clips or captions have come, gone or changed, the same command brings
both up to date. A manifest that was edited stays; --overwrite reads the folder again all the same.

`config.data.prepare` says what is read (source: msrvtt, msrvtt_7k, msrvtt_full, didemo,
activitynet, msvd, vatex, vatex_clip2video, lsmdc, karpathy, msrvtt_qa, vqav2, vqa_blip, easy_vqa,
manifest), which frames are kept (sampling: fps, uniform,
middle) and how (short_side, quality); flags can set each of them, as in
--config.data.prepare.short_side=128. For source=manifest, --input is a JSONL file: {"id", "path",
"start", "end", "captions": [], "qa": [], "split"} in each line. config.data.prepare.window=10 and
.stride=5 cut files into clips of 10 s that begin every 5 s.

Files that cannot be used are skipped and listed in RECORDS_DIR/report.jsonl; if they are more than
one in twenty, the command stops (--config.data.prepare.max_bad_share=.3 allows three in ten). After
a kill or a stop, the same command resumes: finished work is kept in RECORDS_DIR.work, which is
removed at the end. When the input has changed, the same command decodes what is new. --share=I/N
decodes a part of it.
"""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from uniadapter_jax.common.cores import usable_cores
from uniadapter_jax.common.errors import UserError, run_app
from uniadapter_jax.common.shares import Share
from uniadapter_jax.data.preparation.clips import PrepareSettings
from uniadapter_jax.data.preparation.folder_manifest import update_manifest
from uniadapter_jax.data.preparation.making import Job, Making
from uniadapter_jax.data.preparation.shares import decode_share
from uniadapter_jax.data.preparation.split_advice import missing_splits
from uniadapter_jax.data.preparation.survey import survey
from uniadapter_jax.data.preparation.windows import read_items
from uniadapter_jax.data.sources.manifest import NAMES
from uniadapter_jax.runs.workdir import holding


def prepare(
    settings: PrepareSettings,
    input_path: str,
    output: str,
    *,
    workers: int = 0,
    tokenizer_size: int = 0,
    wordpiece_size: int = 0,
    overwrite: bool = False,
    keep: bool = True,
    share: Share | None = None,
    config: ConfigDict | None = None,
) -> dict[str, Any]:
    """Writes the records directory `output`; returns the content of its `prepare.json`.

    The same input and settings give the same bytes for any number of workers, and whether records
    were there before.

    Args:
      input_path: directory with annotations and media, or the manifest.
      workers: number of decoding processes; 0 decodes in this one.
      tokenizer_size: entries of a byte-level BPE to train on the train captions, 0 for none.
      wordpiece_size: entries of a WordPiece vocabulary to train on the captions, questions and
        answers of train, [DEC] and [ENC] not counted; 0 for none.
      overwrite: whether records of another input or with other settings may be replaced.
      keep: whether a later command may take the frames of unchanged items over.
      share: decode this part of the work only, and assemble nothing; the result is empty then.
      config: config of a run, whose limits say which texts are cut; None counts none.
    """
    sizes = {"tokenizer": tokenizer_size, "wordpiece": wordpiece_size}
    job = Job(
        settings=settings,
        input_path=input_path,
        output=os.path.abspath(output),
        workers=workers,
        sizes={folder: size for folder, size in sizes.items() if size},
        overwrite=overwrite,
        keep=keep,
        hold=holding,
        count_cut=functools.partial(_count_cut, config),
    )
    making = Making(job)
    if share is not None:
        decode_share(making, share)
        return {}
    content = making.run()
    if config is not None:
        found = {split for split, counts in content["coverage"].items() if counts["found"]}
        _say(list(missing_splits(config, making.source, found)))
    return content


def _count_cut(config: ConfigDict | None, records: str, *alone: Any) -> None:
    if config is not None:
        from uniadapter_jax.runs.prepared_texts import keep_cut  # workers do not need its imports

        keep_cut(records, config, *alone)


def _say(lines: Sequence[str]) -> None:
    if lines:
        print("\n".join(lines), flush=True)


def _manifest_of(folder: str, manifest: str, overwrite: bool) -> str:
    """The manifest of a folder, brought up to date where it was not edited."""
    command = ["python", "-m", "uniadapter_jax.prepare", *sys.argv[1:], "--overwrite"]
    _say(update_manifest(folder, manifest, overwrite=overwrite, again=shlex.join(command)))
    return manifest


def define_flags() -> dict[str, Any]:
    return {
        "config": config_flags.DEFINE_config_file(
            "config", None, "Experiment, such as configs/msrvtt.py; config.data.prepare is used."
        ),
        "input": flags.DEFINE_string(
            "input", None, "Directory with annotations and media, or a JSONL manifest."
        ),
        "output": flags.DEFINE_string(
            "output", None, "Records directory to make; default: config.data.records."
        ),
        "workers": flags.DEFINE_integer(
            "workers", usable_cores(), "Decoding processes; 0: none beside this one.", 0
        ),
        "tokenizer": flags.DEFINE_integer(
            "train-tokenizer",
            0,
            "Also train a byte-level BPE of this many entries on the train captions, into "
            "OUTPUT/tokenizer.",
            0,
        ),
        "wordpiece": flags.DEFINE_integer(
            "train-wordpiece",
            0,
            "Also train a WordPiece vocabulary of this many entries, for BLIP, on the captions, "
            "questions and answers of train, into OUTPUT/wordpiece.",
            0,
        ),
        "overwrite": flags.DEFINE_bool(
            "overwrite",
            False,
            "Replace records of another input or with other settings; with --from-folder also a "
            "manifest that was edited by hand.",
        ),
        "keep": flags.DEFINE_bool(
            "keep",
            True,
            "Write OUTPUT/kept.jsonl, some 100 bytes an item, by which a rerun decodes only what "
            "has changed in the input.",
        ),
        "no-keep": flags.DEFINE_bool(
            "no-keep", False, "Write no OUTPUT/kept.jsonl, and remove the one that is there."
        ),
        "share": flags.DEFINE_string(
            "share",
            None,
            "I/N: decode only share I of N, I from 0 to N - 1, on any host that sees input and "
            "output. The same command without it assembles.",
        ),
        "dry-run": flags.DEFINE_bool(
            "dry-run", False, "Count what would be read, what is missing, how large it gets."
        ),
        "from-folder": flags.DEFINE_string(
            "from-folder",
            None,
            "Write a manifest of the videos and pictures of this folder, with captions from files "
            "beside them (.txt, .srt, .vtt, .csv), to --output or FOLDER/manifest.jsonl, or bring "
            "it up to date unless it was edited; with --config also make the records.",
        ),
    }


def main() -> None:
    values = define_flags()
    for name in ("train-tokenizer", "train-wordpiece", "dry-run", "from-folder", "no-keep"):
        flags.DEFINE_alias(name.replace("-", "_"), name)

    def run(argv: Sequence[str]) -> None:
        del argv
        config = values["config"].value
        source = values["input"].value
        if folder := values["from-folder"].value:
            if source is not None:
                raise UserError("--from-folder and --input both say what is read; give one")
            named = values["output"].value if config is None else None
            manifest = named or os.path.join(folder, NAMES[0])
            source = _manifest_of(folder, manifest, values["overwrite"].value)
            if config is None:
                return
        if config is None:
            raise UserError("--config is missing; for example --config=configs/msrvtt.py")
        if source is None:
            raise UserError("--input is missing: the directory with annotations and media")
        settings = PrepareSettings.from_config(config.data.prepare)
        if values["dry-run"].value:
            _say(survey(read_items(settings, source), settings))
            return
        share = (
            Share.parse("--share", values["share"].value)
            if values["share"].value is not None
            else None
        )
        output = values["output"].value or config.data.records
        if not output:
            raise UserError("--output is missing, and config.data.records is empty")
        prepare(
            settings,
            source,
            output,
            workers=values["workers"].value,
            tokenizer_size=values["tokenizer"].value,
            wordpiece_size=values["wordpiece"].value,
            overwrite=values["overwrite"].value,
            keep=values["keep"].value and not values["no-keep"].value,
            share=share,
            config=config,
        )

    run_app(run)


if __name__ == "__main__":
    main()
