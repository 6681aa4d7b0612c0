"""prepare.json: the description of a records directory, with the digests of its other files."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from uniadapter_jax.common.files import (
    FileError,
    read_bytes,
    read_json,
    sealed,
    unsealed,
    write_whole,
)

NAME = "prepare.json"
DESCRIPTIONS = ("dataset_info.json", "features.json")  # TFDS writes them
_COUNTS = {"expected": int, "found": int, "reasons": dict, "empty_captions": int}
_LARGEST = 1 << 20  # bytes of prepare.json; a split takes a few hundred
_SMALL = 16 << 20  # most bytes of a file that is read at once


def prepared_text(content: Mapping[str, Any], directory: str, files: Iterable[str]) -> str:
    """The text of prepare.json for finished `files` of a directory."""
    digests = {name: file_digest(os.path.join(directory, name)) for name in sorted(files)}
    return json.dumps(sealed({**content, "files": digests}), indent=1, sort_keys=True)


def write_prepared(directory: str, content: Mapping[str, Any]) -> None:
    """Writes an extended result of `read_prepared`; the digests of other files stay."""
    text = json.dumps(sealed(content), indent=1, sort_keys=True)
    write_whole(os.path.join(directory, NAME), f"{text}\n")


def read_prepared(directory: str) -> dict[str, Any] | None:
    """prepare.json of a finished records directory, None where there is none.

    Raises:
      FileError: the file is damaged; the message names the field.
    """
    path = os.path.join(directory, NAME)
    try:
        content, _ = unsealed(read_json(path, limit=_LARGEST), path)
    except FileNotFoundError:
        return None
    for name in ("settings", "coverage", "files"):
        if not isinstance(content.setdefault(name, {} if name == "files" else None), dict):
            raise FileError(path, f"{name} should be an object")
    for split, counts in content["coverage"].items():
        for name, kind in _COUNTS.items():
            if not isinstance(counts, dict) or type(counts.get(name)) is not kind:
                raise FileError(path, f"coverage.{split}.{name} should be {kind.__name__}")
    return content


def splits_of(root: str) -> tuple[str, ...]:
    """The splits of a records directory that hold anything, in the order of `prepare.json`."""
    prepared = read_prepared(os.path.abspath(root))
    coverage = {} if prepared is None else prepared["coverage"]
    return tuple(name for name, counts in coverage.items() if counts["found"])


def check_file(directory: str, prepared: Mapping[str, Any], name: str) -> None:
    """Raises `FileError` unless a small file has the digest that prepare.json names, if any."""
    path = os.path.join(directory, name)
    try:
        digest = hashlib.sha256(read_bytes(path, _SMALL)).hexdigest()
    except FileNotFoundError as error:
        raise FileError(path, "is missing; prepare the records again") from error
    check_digest(path, prepared, name, digest)


def check_digest(path: str, prepared: Mapping[str, Any], name: str, digest: str) -> None:
    """Raises `FileError` unless prepare.json names this digest for the file, if any."""
    if prepared["files"].get(name, digest) != digest:
        raise FileError(
            path, f"is damaged: it does not have the SHA-256 that {NAME} names; prepare the "
            "records again"
        )  # fmt: skip


def file_digest(path: str | pathlib.Path) -> str:
    """SHA-256 of a file of any size."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
