"""Assembles decoded clips into the records of a data set: a TFDS build without decoding.

A finished directory holds, beside TFDS's own `dataset_info.json` and `features.json`:

    records-<split>.array_record-*   one record per clip, in the order of the annotations
    index-<split>.jsonl              line i describes record i: id, captions, frames, qa, sha256
    places-<split>.bin               where each frame lies; see `frame_places`
    prepare.json                     settings, decoder, coverage, counts, SHA-256 of the files
    report.jsonl                     one line with the reason for each thing left out
    kept.jsonl                       which files the frames are of; see `kept`

TFDS's `GeneratorBasedBuilder` buffers a split in memory and needs TensorFlow once that exceeds
1 GB; `ShardBasedBuilder` streams and keeps the order, so that index and records match.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from array_record.python import array_record_module
from tensorflow_datasets.core import writer as example_writer
from tensorflow_datasets.proto import tf_example_pb2

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.files import FileError, sync_directory
from uniadapter_jax.data import frame_places, prepared
from uniadapter_jax.data.preparation import kept
from uniadapter_jax.data.preparation.clips import Clip, PrepareSettings, decoder_versions
from uniadapter_jax.data.preparation.contents import Contents, Entry, FrameFile, ReadClip
from uniadapter_jax.data.records import frames_digest

RECORDS_FORMAT = 1
FILE_BYTES = 128 << 20  # bytes of frames per record file
_OPEN_FILES = 8  # of shards and finished records that clips are read from in turn
_BYTES = tfds.features.Tensor(shape=(), dtype=np.bytes_)


class _SameBytesWriter(example_writer.ExampleWriter):
    """Sorts the features of an example, as protobuf maps have another order in each process.

    Records are not compressed, as JPEG is, so that each frame can be read alone.
    """

    def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> None:
        parse = tf_example_pb2.Example.FromString
        with disk_errors(path):
            options = "group_size:1,uncompressed"
            writer = array_record_module.ArrayRecordWriter(os.fspath(path), options)
            for _, example in examples:
                writer.write(parse(example).SerializeToString(deterministic=True))
            writer.close()


class RecordsBuilder(tfds.core.ShardBasedBuilder):
    """Writes the entries of `Contents`; collects the index lines as it goes."""

    name = "records"
    code_path = None  # so that TFDS looks for no files of checksums or licences here
    VERSION = tfds.core.Version(f"{RECORDS_FORMAT}.0.0")

    def __init__(self, entries: Mapping[str, Sequence[Entry]], **kwargs: Any):
        self._entries = entries
        self.lines: dict[str, list[str]] = {split: [] for split in entries}
        super().__init__(**kwargs)

    def _example_writer(self) -> _SameBytesWriter:
        return _SameBytesWriter(file_format=self.info.file_format)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            "frames": tfds.features.Sequence(_BYTES),
            "pts": tfds.features.Sequence(np.float32),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "qa": tfds.features.Sequence(tfds.features.Text()),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Clips as JPEG frames with their captions.",
            features=tfds.features.FeaturesDict(features),
        )

    def _shard_iterators_per_split(
        self, dl_manager: Any
    ) -> Mapping[str, Sequence[Callable[[], Iterator[tuple[int, dict[str, Any]]]]]]:
        del dl_manager  # nothing is downloaded
        return {
            split: [functools.partial(self._examples, split, file) for file in _files(entries)]
            for split, entries in self._entries.items()
            if entries
        }

    def _examples(
        self, split: str, entries: Sequence[Entry]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        clips = _clips(entries)
        for key, (entry, clip) in enumerate(zip(entries, clips, strict=True)):
            digest = frames_digest(clip.frames).hex()
            self.lines[split].append(json.dumps(entry.line(digest), ensure_ascii=False))
            yield (
                key,
                {
                    "id": entry.item.id,
                    "frames": clip.frames,
                    "pts": clip.pts,
                    "captions": list(entry.captions),
                    "qa": [json.dumps(qa) for qa in entry.item.qa],
                },
            )


def build(
    contents: Contents,
    settings: PrepareSettings,
    facts: Mapping[str, Any],
    directory: str,
    keep: bool = True,
) -> None:
    """Writes a complete records directory, synced to disk; `facts` go into `prepare.json`.

    `keep` writes kept.jsonl, too.
    """
    shutil.rmtree(directory, ignore_errors=True)
    data_dir = f"{directory}.tfds"
    shutil.rmtree(data_dir, ignore_errors=True)
    with disk_errors(directory):
        builder = RecordsBuilder(contents.entries, data_dir=data_dir, file_format="array_record")
        with _quiet():
            builder.download_and_prepare(
                download_dir=os.path.join(data_dir, "downloads"),
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
        os.rename(os.fspath(builder.data_path), directory)
        shutil.rmtree(data_dir)
        for split, lines in builder.lines.items():
            if lines:
                write_lines(os.path.join(directory, f"index-{split}.jsonl"), lines)
        write_places(directory, builder.info.splits, builder.lines)
        write_report(os.path.join(directory, "report.jsonl"), contents)
        content = {
            "format": RECORDS_FORMAT,
            "settings": settings.identity(),
            **facts,
            "decoder": decoder_versions(),
            "coverage": contents.coverage,
        }
        of_splits = [
            name
            for split, lines in builder.lines.items()
            if lines
            for name in (f"index-{split}.jsonl", frame_places.places_name(split))
        ]
        text = prepared.prepared_text(content, directory, [*prepared.DESCRIPTIONS, *of_splits])
        write_lines(os.path.join(directory, prepared.NAME), [text])
        if keep:
            lines = kept.kept_lines(_found(contents), json.loads(text)["files"])
            write_lines(os.path.join(directory, kept.NAME), lines)
        for name in sorted(os.listdir(directory)):
            _sync_file(os.path.join(directory, name))
        sync_directory(directory)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences TFDS, which announces downloads although there are none."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        logging.set_verbosity(verbosity)


def write_places(directory: str, splits: Mapping[str, Any], lines: Mapping[str, list[str]]) -> None:
    """Writes the places of all frames, and sees that there are the frames of the index.

    Raises:
      FileError: a record file is not what was written.
    """
    for split, info in splits.items():
        digests = (json.loads(line)["sha256"] for line in lines[split])
        with open(os.path.join(directory, frame_places.places_name(split)), "wb") as places:
            files = zip(info.filenames, info.shard_lengths, strict=True)
            for number, (name, count) in enumerate(files):
                path = os.path.join(directory, name)
                for rows, frames in frame_places.find(path, count, number):
                    if frames_digest(frames) != bytes.fromhex(next(digests)):
                        raise FileError(path, "holds other frames than were written")
                    places.write(rows.tobytes())


def write_report(path: str, contents: Contents) -> None:
    """Writes a JSON line for each item and caption left out."""
    write_lines(path, [json.dumps(problem, ensure_ascii=False) for problem in contents.problems])


def _found(contents: Contents) -> Iterator[tuple[str, kept.Found]]:
    for split, entries in contents.entries.items():
        for number, entry in enumerate(entries):
            yield entry.key, kept.Found(split, number, entry.frames, entry.size)
    yield from contents.failures


def write_lines(path: str, lines: Sequence[str]) -> None:
    with open(path, "w", encoding="utf-8", errors="replace", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def _files(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The entries of each record file: at least one, and at most FILE_BYTES otherwise."""
    files: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if files[-1] and size + entry.size > FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append(entry)
        size += entry.size
    return files


def _clips(entries: Sequence[Entry]) -> Iterator[Clip]:
    """The clips of the entries; each work shard is read once."""
    reader = functools.lru_cache(_OPEN_FILES)(_reader)
    for entry in entries:
        yield reader(entry.file)(entry.position)


def _reader(file: FrameFile) -> ReadClip:
    return file.reader()


def _sync_file(path: str) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
