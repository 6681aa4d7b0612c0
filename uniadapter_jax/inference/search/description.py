"""index.json: what made the rows of an index, so that nothing else is mixed with them."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from shlex import quote
from typing import Any

import numpy as np

from uniadapter_jax.adapters.partition import flat_names
from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError, read_json, sealed, unsealed, write_json
from uniadapter_jax.common.packaged import packaged
from uniadapter_jax.data.preparation.clips import decoder_versions
from uniadapter_jax.inference.adapted import AdaptedBackbone
from uniadapter_jax.inference.clip_files import Windows
from uniadapter_jax.weights.adapter_directory import tensors_digest

NAME = "index.json"
FORMAT = "uniadapter_jax index/1"
CODE = 1  # raise it when the same file and model give other rows
MODELS = ("backbone", "adapter")  # of `made`, on which its other fields depend
DTYPES = ("float32", "float16")
_FIELDS = {
    **{"format": str, "root": str, "generation": int, "width": int, "keeps_frames": bool},
    **{"backbone": str, "adapter": str, "made": dict, "decoder": dict},
}


@dataclasses.dataclass(frozen=True)
class Description:
    """What is known of an index beside its parts.

    Attributes:
      root: the folder that was indexed.
      backbone, adapter: where they were, to be loaded from; "" is none.
      made: what the rows depend on, flat: two that differ do not mix.
      width: of a row.
      keeps_frames: whether a clip has a row for each frame, not one.
      decoder: versions of the libraries that decoded.
      generation: of the parts that count.
    """

    root: str
    backbone: str
    adapter: str
    made: Mapping[str, Any]
    width: int
    keeps_frames: bool
    decoder: Mapping[str, str] = dataclasses.field(default_factory=decoder_versions)
    generation: int = 0

    def write(self, index: pathlib.Path) -> None:
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        with disk_errors(index):
            index.mkdir(parents=True, exist_ok=True)
        write_json(index / NAME, sealed(content))

    def check(
        self,
        index: object,
        wanted: Mapping[str, Any],
        advice: str,
        places: tuple[str, str] = ("", ""),
    ) -> None:
        """Raises `UserError` with both sides of what differs from what made the rows.

        `places` are those of the backbone and the adapter here. Where these differ, what follows
        from them, such as a tokenizer, is not named.
        """
        pairs = {name: (self.made.get(name), wanted.get(name)) for name in {**self.made, **wanted}}
        differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        if not differing:
            return
        sides = []
        for name, there, here in zip(MODELS, (self.backbone, self.adapter), places, strict=True):
            if name in differing:
                sides.append(f"the {name} {_sides(there, here, *differing[name])}")
        if not sides:
            sides = [f"{name}={_said(a)}, not {_said(b)}" for name, (a, b) in differing.items()]
        raise UserError(f"{index} was made with {'; '.join(sides)}. {advice}")


def _sides(there: str, here: str, made: Any, wanted: Any) -> str:
    """Two models by their places, or by their digests where these tell nothing."""
    if there and here and there != absolute(here):
        return f"{there}, not {here}"
    if bool(there) != bool(here):
        return f"{there or made}, not {here or wanted}"
    where = f"{there} when it was " if there else ""
    return f"{where}{made}, not {wanted}"


def _said(value: Any) -> str:
    if isinstance(value, list):  # of seconds
        return " every ".join(f"{seconds:g} s" for seconds in value)
    return "none" if value is None else str(value)


def of_model(model: AdaptedBackbone) -> dict[str, Any]:
    """What rows and queries depend on of a model."""
    trained = {k: np.asarray(v) for k, v in flat_names(model.partition.trainable).items()}
    adapter = f"{model.method} {tensors_digest(trained)[:16]}" if trained else "none"
    return {
        "backbone": model.fingerprint,
        "adapter": adapter,
        "tokenizer": model.tokenizer.fingerprint,
        **{f"task.{name}": value for name, value in sorted(model.task.items())},
    }


def of_rows(model: AdaptedBackbone, windows: Windows | None, dtype: str) -> dict[str, Any]:
    """What the rows of an index depend on."""
    clips = model.clips.to_json()
    return {
        "code": CODE,
        **of_model(model),
        **{f"clips.{n}": clips[n] for n in ("frames", "sampling", "merge") if n in clips},
        **{f"clips.prepare.{name}": value for name, value in clips["prepare"].items()},
        "window": windows and [windows.seconds, windows.stride],
        "dtype": dtype,
    }


def read_description(index: str | os.PathLike[str]) -> Description:
    """The description of an index; raises `UserError` where there is none, or a damaged one."""
    path = pathlib.Path(index) / NAME
    try:
        content, _ = unsealed(read_json(path), path)
    except FileNotFoundError:
        raise UserError(
            f"{os.fspath(index)} holds no {NAME}, so it is no index; make one: python -m "
            f"uniadapter_jax.index --input=FOLDER --output={quote(os.fspath(index))} --backbone=DIR"
        ) from None
    if content.get("format") != FORMAT:
        raise FileError(
            path, f"format is {content.get('format')!r:.80}, this package reads {FORMAT!r}; index "
            "the folder into a new --output"
        )  # fmt: skip
    for name, kind in _FIELDS.items():
        if type(content.get(name)) is not kind:
            raise FileError(path, f"{name} should be {kind.__name__}; make the index again")
    del content["format"]
    try:
        return Description(**content)
    except TypeError as error:
        raise FileError(path, f"is damaged: {error}") from error


def absolute(path: str | None) -> str:
    """A directory, or random:<file>, as seen from anywhere; names of a hub stay."""
    if not path:
        return ""
    scheme, colon, rest = path.rpartition("random:")
    return (
        scheme + colon + os.path.abspath(packaged(rest)) if colon or os.path.exists(rest) else path
    )
