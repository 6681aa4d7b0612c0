"""What finished records and a command have to do with each other: up to date, grown, foreign."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from typing import Any

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.preparation.clips import PrepareSettings
from uniadapter_jax.data.preparation.kept import Found, read_kept
from uniadapter_jax.data.preparation.planning import Keys
from uniadapter_jax.data.preparation.shards import hash_json, media_size
from uniadapter_jax.data.prepared import read_prepared
from uniadapter_jax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class State:
    """What a command finds at its output.

    Attributes:
      up_to_date: whether nothing has to be made.
      found: {key: place} of the frames that finished records have.
      grows: whether those records are of this input, as it was before.
    """

    up_to_date: bool
    found: Mapping[str, Found]
    grows: bool


def facts_of(source: Source) -> dict[str, Any]:
    """What prepare.json says about the input: a hash of annotations and sizes of media files."""
    facts = [
        (i.id, i.path, i.split, i.captions, i.start, i.end, i.qa, media_size(source.root, i))
        for i in source.items
    ]
    return {"protocol": source.protocol, "input": hash_json(facts)}


def compare(
    output: str,
    settings: PrepareSettings,
    facts: Mapping[str, Any],
    keys: Keys,
    overwrite: bool,
) -> State:
    """Compares finished records with a command.

    Raises:
      UserError: they have other settings, or nothing in common with the input, and `overwrite` is
        false; or the output holds something else.
    """
    content = read_prepared(output)
    if content is None:
        if os.path.exists(output) and (not os.path.isdir(output) or os.listdir(output)):
            raise UserError(f"--output={output} exists and holds no records; name another")
        return State(False, {}, False)
    found = read_kept(output, content["files"])
    same = sum(key in found for key in keys.of.values())
    different = _differences(content, {"settings": settings.identity(), **facts})
    if not different and (same == len(keys.of) or (not same and not overwrite)):
        if found and not same:
            print(
                f"{output}: all media files have other times, or the decoder is another version; "
                "--overwrite decodes them again",
                file=sys.stderr,
            )
        return State(True, found, False)
    grows = "settings" not in different and same > 0
    if not grows and not overwrite:
        text = "; ".join(f"{key}: {value}" for key, value in different.items())
        raise UserError(
            f"--output={output} holds other records ({text}), of which no frames can be "
            "taken over; --overwrite replaces them"
        )
    return State(False, found, grows)


def _differences(content: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: f"there {content.get(key)}, wanted {value}"
        for key, value in wanted.items()
        if content.get(key) != value
    }
