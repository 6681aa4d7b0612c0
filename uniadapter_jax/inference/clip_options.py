"""How a model takes frames out of a video: as its adapter was trained, or by the usual options.

A run's clips went two ways: `prepare` took frames of the file and stored them as JPEGs, and loading
took some of the stored ones. An adapter keeps the options of both, so that a file that is encoded
later gives the very pixels that its record would have given.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.config import base_config
from uniadapter_jax.config.rules import CHOICES, RANGES
from uniadapter_jax.data.preparation.clips import PrepareSettings
from uniadapter_jax.data.prepared import read_prepared
from uniadapter_jax.inference.options import check_option, of_section

_LOADED = ("frames", "sampling")  # of `config.data`
# of `config.data.prepare`
_STORED = ("sampling", "fps", "frames", "short_side", "quality", "shape")


@dataclasses.dataclass(frozen=True)
class ClipOptions:
    """The way from a file to the frames that a model sees, but for their size and `resize`.

    Attributes:
      stored: which frames of a file are stored, and how.
      frames, sampling: how many of the stored ones are taken, and by which rule.
      merge: tokens of a picture that every layer of the model merges; `compute.merge`.
      assumed: names of options that nobody kept, so that they have defaults.
    """

    stored: PrepareSettings
    frames: int
    sampling: str
    merge: int = 0
    assumed: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def to_json(self) -> dict[str, Any]:
        """What an adapter and an index keep: the options that the pixels depend on."""
        stored = {name: v for name, v in self.stored.identity().items() if name != "source"}
        merge = {"merge": self.merge} if self.merge else {}  # files of before have none
        return {"frames": self.frames, "sampling": self.sampling, **merge, "prepare": stored}


def clip_options(kept: Mapping[str, Any], where: object, image_size: int) -> ClipOptions:
    """The options that an adapter kept; those that it lacks have the defaults of a config.

    Frames are then stored at the model's own size where that is larger than the default.

    Raises:
      UserError: a value is of another type, out of range or no choice; `where` is named.
    """
    usual = base_config().data
    stored = usual.prepare.to_dict() | {"source": "manifest"}
    stored["short_side"] = max(stored["short_side"], image_size)
    given = kept.get("prepare", {})
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: clips.prepare={given!r:.80}: expected a JSON object")
    loaded = _checked(f"{where}: clips", usual, kept, _LOADED, "data")
    stored |= _checked(f"{where}: clips.prepare", stored, given, _STORED, "data.prepare")
    merge = check_option(
        f"{where}: clips.merge", kept.get("merge", 0), 0, of_section(RANGES, "compute"), {}
    )
    options = ClipOptions(PrepareSettings.from_config(stored), **loaded, merge=merge)
    used = options.to_json()
    assumed = [name for name in _LOADED if name not in kept]
    assumed += [f"prepare.{name}" for name in used["prepare"] if name not in given]
    return dataclasses.replace(options, assumed=tuple(assumed))


def _checked(
    where: str, usual: Any, given: Mapping[str, Any], names: tuple[str, ...], section: str
) -> dict[str, Any]:
    rules = of_section(RANGES, section), of_section(CHOICES, section)
    return {
        name: check_option(f"{where}.{name}", given.get(name, usual[name]), usual[name], *rules)
        for name in names
    }


def kept_of_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """What an adapter keeps of a run's config.

    How frames were stored is told by the records, else by the config, which may have been another
    when they were prepared.
    """
    data = config["data"]
    records = read_prepared(data["records"]) if os.path.isdir(data["records"]) else None
    settings = records["settings"] if records else data["prepare"] if "prepare" in data else {}
    stored = {name: settings[name] for name in _STORED if name in settings}
    merge = config.get("compute", {}).get("merge", 0)
    kept: dict[str, Any] = {name: data[name] for name in _LOADED if name in data}
    return kept | ({"merge": merge} if merge else {}) | {"prepare": stored}
