"""Turns annotations and media files into records. Run once per data set.

    python -m uniadapter_jax.prepare --config=configs/msrvtt.py --input=RAW_DIR --output=RECORDS_DIR

    python -m uniadapter_jax.prepare --from-folder=MY_CLIPS

The second writes MY_CLIPS/manifest.jsonl, to be looked through and then given as --input.

`config.data.prepare` says what is read (source: msrvtt, msrvtt_7k, msrvtt_full, didemo,
activitynet, msvd, vatex, vatex_clip2video, lsmdc, karpathy, msrvtt_qa, vqav2, vqa_blip, easy_vqa,
manifest), which frames are kept (sampling: fps, uniform,
middle) and how (short_side, quality); flags can set each of them, as in
--config.data.prepare.short_side=128. For source=manifest, --input is a JSONL file: {"id", "path",
"start", "end", "captions": [], "qa": [], "split"} in each line.

Files that cannot be used are skipped and listed in RECORDS_DIR/report.jsonl; above
config.data.prepare.max_bad_share the command stops. After a kill or a stop, the same command
resumes: finished work is kept in RECORDS_DIR.work, which is removed at the end.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from uniadapter_jax.common.cores import usable_cores
from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.errors import UserError, run_app
from uniadapter_jax.common.files import FileError
from uniadapter_jax.common.progress import Progress, on_terminal
from uniadapter_jax.data.preparation.clips import PrepareSettings
from uniadapter_jax.data.preparation.folder import write_manifest
from uniadapter_jax.data.preparation.shards import (
    Shard,
    check_shard,
    hash_json,
    media_size,
    plan_shards,
)
from uniadapter_jax.data.preparation.survey import survey
from uniadapter_jax.data.preparation.workers import decode_shards
from uniadapter_jax.data.prepared import read_prepared
from uniadapter_jax.data.sources import Source, read_source
from uniadapter_jax.data.sources.manifest import NAMES
from uniadapter_jax.runs.workdir import LOCK, holding

PROGRESS_SECONDS = 2.0


def prepare(
    settings: PrepareSettings,
    input_path: str,
    output: str,
    *,
    workers: int = 0,
    tokenizer_size: int = 0,
    wordpiece_size: int = 0,
    overwrite: bool = False,
    config: ConfigDict | None = None,
) -> dict[str, Any]:
    """Writes the records directory `output`; returns the content of its `prepare.json`.

    The same input and settings give the same bytes for any number of workers.

    Args:
      input_path: directory with annotations and media, or the manifest.
      workers: number of decoding processes; 0 decodes in this one.
      tokenizer_size: entries of a byte-level BPE to train on the train captions, 0 for none.
      wordpiece_size: entries of a WordPiece vocabulary to train on the captions, questions and
        answers of train, [DEC] and [ENC] not counted; 0 for none.
      overwrite: whether records of another input or with other settings may be replaced.
      config: config of a run, whose limits say which texts are cut; None counts none.
    """
    output = os.path.abspath(output)
    source = read_source(settings.source, input_path)
    facts = {"protocol": source.protocol, "input": _input_hash(source)}
    finished = _finished(output, settings, facts, overwrite)
    wanted = {"tokenizer": tokenizer_size, "wordpiece": wordpiece_size}
    sizes = {folder: size for folder, size in wanted.items() if size}
    if finished is None:
        with _work_directory(f"{output}.work") as work:
            _make(source, settings, facts, output, work, workers, sizes, config)
    else:
        print(f"{output} is up to date")
    # Work beside finished records is left by a kill between the last rename and the end.
    if finished is not None and (sizes or os.path.exists(f"{output}.work")):
        with _work_directory(f"{output}.work") as work:
            _add_tokenizers(output, work, sizes)
    if config is not None and finished is not None:
        _keep_cut(output, config, functools.partial(_work_directory, f"{output}.work"))
    content = read_prepared(output)
    assert content is not None
    return content


def _input_hash(source: Source) -> str:
    """The hash of the annotations and the size of every media file."""
    return hash_json(
        [
            (i.id, i.path, i.split, i.captions, i.start, i.end, i.qa, media_size(source.root, i))
            for i in source.items
        ]
    )


def _finished(
    output: str, settings: PrepareSettings, facts: dict[str, Any], overwrite: bool
) -> dict[str, Any] | None:
    """prepare.json of existing records if they fit this command; None if they have to be made."""
    content = read_prepared(output)
    if content is None:
        if os.path.exists(output) and (not os.path.isdir(output) or os.listdir(output)):
            raise UserError(f"--output={output} exists and holds no records; name another")
        return None
    wanted = {"settings": settings.identity(), **facts}
    different = {
        key: f"there {content.get(key)}, wanted {value}"
        for key, value in wanted.items()
        if content.get(key) != value
    }
    if not different:
        return content
    if overwrite:
        return None
    text = "; ".join(f"{key}: {value}" for key, value in different.items())
    raise UserError(f"--output={output} holds other records ({text}); --overwrite replaces them")


@contextlib.contextmanager
def _work_directory(path: str) -> Iterator[str]:
    """The directory for unfinished work; one command at a time may use it."""
    with holding(path, "prepare"):
        yield path
    with contextlib.suppress(OSError):  # not empty: it has unfinished work
        os.rmdir(path)


def _empty(path: str) -> None:
    """Removes everything in a directory but the lock."""
    for entry in os.scandir(path):
        if entry.name != LOCK:
            _remove(entry.path)


def _make(
    source: Source,
    settings: PrepareSettings,
    facts: dict[str, Any],
    output: str,
    work: str,
    workers: int,
    sizes: Mapping[str, int],
    config: ConfigDict | None,
) -> None:
    shards = plan_shards(source.items, source.root, settings, os.path.join(work, "shards"))
    _clean(work, shards)
    _remove_damaged(shards)
    _decode(shards, source.root, settings, workers, output)

    from uniadapter_jax.data.preparation import builder  # TFDS is not needed by the workers

    survey = builder.survey(source, shards)
    if survey.bad > settings.max_bad_share * survey.expected or survey.bad == survey.expected:
        report = os.path.join(work, "report.jsonl")
        builder.write_report(report, survey)
        raise UserError(
            f"{survey.bad} of {survey.expected} items ({survey.bad / survey.expected:.1%}) gave no "
            f"clip, more than config.data.prepare.max_bad_share={settings.max_bad_share:.1%}: "
            f"{_reasons(survey.coverage)}; listed in {report}. What was decoded is kept: mend the "
            "input or raise the share and run the same command again"
        )
    new = os.path.join(work, "new")
    builder.build(survey, settings, facts, new)
    for folder, size in sizes.items():
        _train(new, os.path.join(new, folder), size)
    if config is not None:
        _keep_cut(new, config)
    _publish(new, output, work)
    _print_report(output, survey.coverage)


def _clean(work: str, shards: Sequence[Shard]) -> None:
    """Removes leftovers of killed runs and other settings; keeps the lock and planned shards."""
    keep = {os.path.basename(shard.path) for shard in shards}
    with disk_errors(work):
        os.makedirs(os.path.join(work, "shards"), exist_ok=True)
        for entry in os.scandir(work):
            if entry.name not in (LOCK, "shards"):
                _remove(entry.path)
        for entry in os.scandir(os.path.join(work, "shards")):
            if entry.name not in keep:
                _remove(entry.path)


def _remove_damaged(shards: Sequence[Shard]) -> None:
    """Checks the shards of earlier runs, before their clips are counted as done."""
    for shard in shards:
        if shard.done:
            try:
                check_shard(shard)
            except FileError as error:
                print(f"warning: {error}; its items are decoded again", file=sys.stderr)
                _remove(shard.path)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _publish(new: str, output: str, work: str) -> None:
    """Moves the finished directory to its place, where a half-written one never appears."""
    with disk_errors(output):
        if os.path.isdir(output):
            os.rename(output, os.path.join(work, "old"))
        os.rename(new, output)
        _empty(work)


def _train(records: str, target: str, size: int) -> None:
    """Trains the tokenizer that `target` is named after: `tokenizer` (CLIP), `wordpiece` (BLIP)."""
    from uniadapter_jax.data.records import open_records
    from uniadapter_jax.data.tokenizers.clip import train_tokenizer
    from uniadapter_jax.data.tokenizers.wordpiece import train_wordpiece

    train = open_records(records, "train")
    texts = (caption for clip in train.captions for caption in clip)
    if os.path.basename(target) == "tokenizer":
        train_tokenizer(texts, size, target)
    else:
        asked = (question for several in train.questions for question in several)
        of_questions = (text for q in asked for text in (q.text, *q.answers))
        train_wordpiece(itertools.chain(texts, of_questions), size, target)


def _keep_cut(records: str, config: ConfigDict, *alone: Any) -> None:
    from uniadapter_jax.runs.prepared_texts import keep_cut  # workers do not need its imports

    keep_cut(records, config, *alone)


def _add_tokenizers(output: str, work: str, sizes: Mapping[str, int]) -> None:
    """Trains the tokenizers that finished records lack."""
    for folder, size in sizes.items():
        target = os.path.join(output, folder)
        if not os.path.exists(target):
            _train(output, os.path.join(work, folder), size)
            os.rename(os.path.join(work, folder), target)
            print(f"trained {target}")
    _empty(work)


def _decode(
    shards: Sequence[Shard], root: str, settings: PrepareSettings, workers: int, output: str
) -> None:
    total = sum(len(shard.items) for shard in shards)
    kept = sum(len(shard.items) for shard in shards if shard.done)
    where = f"by {workers} processes" if workers else "in this process"
    print(f"decoding {total} items {where}, for {output}", file=sys.stderr)
    if kept:
        print(f"kept from an earlier run: {kept} of {total} items", file=sys.stderr)
    every = PROGRESS_SECONDS
    progress = Progress("prepare", total, "items", every=every, kept=kept, write=on_terminal)
    bad = 0

    def report(count: int, failed: int) -> None:
        nonlocal bad
        bad += failed
        progress.note = f", {bad} bad"
        progress.advance(count)

    decode_shards(shards, root, settings, workers, report)
    if progress.done:
        progress.show()
        if sys.stderr.isatty():
            print(file=sys.stderr)


def _reasons(coverage: dict[str, dict[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for split in coverage.values():
        for reason, count in split["reasons"].items():
            counts[reason] = counts.get(reason, 0) + count
    return ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items())) or "none"


def _print_report(output: str, coverage: dict[str, dict[str, Any]]) -> None:
    for split, counts in coverage.items():
        left_out = ", ".join(f"{reason} {n}" for reason, n in counts["reasons"].items())
        line = f"{split}: {counts['found']} of {counts['expected']} items"
        line += f"; left out: {left_out}" if left_out else ""
        empty = counts["empty_captions"]
        print(line + (f"; {empty} empty captions dropped" if empty else ""))
    print(f"wrote {output}; everything left out is listed in {output}/report.jsonl")


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
            "overwrite", False, "Replace records of another input or with other settings."
        ),
        "dry-run": flags.DEFINE_bool(
            "dry-run", False, "Count what would be read, what is missing, how large it gets."
        ),
        "from-folder": flags.DEFINE_string(
            "from-folder",
            None,
            "Write a manifest of the videos and pictures of this folder, with captions from files "
            "beside them (.txt, .srt, .vtt, .csv), to --output or FOLDER/manifest.jsonl.",
        ),
    }


def main() -> None:
    values = define_flags()
    for name in ("train-tokenizer", "train-wordpiece", "dry-run", "from-folder"):
        flags.DEFINE_alias(name.replace("-", "_"), name)

    def run(argv: Sequence[str]) -> None:
        del argv
        config = values["config"].value
        if folder := values["from-folder"].value:
            manifest = values["output"].value or os.path.join(folder, NAMES[0])
            print("\n".join(write_manifest(folder, manifest, overwrite=values["overwrite"].value)))
            return
        if config is None:
            raise UserError("--config is missing; for example --config=configs/msrvtt.py")
        if values["input"].value is None:
            raise UserError("--input is missing: the directory with annotations and media")
        settings = PrepareSettings.from_config(config.data.prepare)
        if values["dry-run"].value:
            print("\n".join(survey(read_source(settings.source, values["input"].value), settings)))
            return
        output = values["output"].value or config.data.records
        if not output:
            raise UserError("--output is missing, and config.data.records is empty")
        prepare(
            settings,
            values["input"].value,
            output,
            workers=values["workers"].value,
            tokenizer_size=values["tokenizer"].value,
            wordpiece_size=values["wordpiece"].value,
            overwrite=values["overwrite"].value,
            config=config,
        )

    run_app(run)


if __name__ == "__main__":
    main()
