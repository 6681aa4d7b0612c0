"""A backbone directory in HuggingFace's layout: config.json, safetensors, tokenizer files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from uniadapter_jax.errors import UserError
from uniadapter_jax.partition import flat_names
from uniadapter_jax.randomness import generator
from uniadapter_jax.weights.families import (
    FAMILIES,
    Config,
    Family,
    Model,
    family_of,
)
from uniadapter_jax.weights.fingerprint import combine, digest, fingerprint, workers
from uniadapter_jax.weights.names import TRANSFORMS, parts, write_rows
from uniadapter_jax.weights.rules import convert
from uniadapter_jax.weights.safetensors_file import read_safetensors_directory, write_safetensors

FINGERPRINT_FILE = "fingerprint.json"  # only of converted backbones
_STRIP = 64


@dataclasses.dataclass
class Backbone:
    """A model in memory, where it came from, and the fingerprint that its adapters carry.

    `model` is a `CLIP` or a `BLIP`, as the config said.
    """

    model: Any
    source: str
    fingerprint: str


def load_backbone(source: str, *, seed: int = 0, **options: object) -> Backbone:
    """A backbone from a directory, or with random weights from `random:<config.json>`.

    `options` go to the model that `model_type` in config.json names: `CLIP` (dtype, remat,
    frame_chunks) or `BLIP` (dtype, remat, dropout, drop_path); `seed` draws the random weights.

    Raises:
      UserError: no such directory or file, neither model, tensors missing, left over or misshaped
        (all of them in one report), or weights changed since `convert` made the directory.
    """
    config = _config_of(source)
    family = family_of(config)
    if source.startswith("random:"):
        model = family.model(config, rng=generator(seed, "backbone"), **options)
        return Backbone(model, source, fingerprint(huggingface_tensors(model), config))
    directory = pathlib.Path(source)
    tensors = family.canonical(read_safetensors_directory(directory), config)
    model = nnx.eval_shape(lambda: family.model(config, rng=None, **options))
    found = _fill(model, tensors, directory)
    _check_fingerprint(directory, found)
    return Backbone(model, source, found)


def backbone_family(source: str) -> Family:
    """The family of what `load_backbone` would load; only its config is read."""
    return family_of(_config_of(source))


def _config_of(source: str) -> Config:
    if source.startswith("random:"):
        return read_config(pathlib.Path(source[7:]))
    directory = pathlib.Path(source)
    if not directory.is_dir():
        raise UserError(
            f"backbone {source!r} is not a directory; pass --config.backbone=DIR with "
            "config.json and model.safetensors (HuggingFace layout), or random:<config.json>"
        )
    return read_config(directory / "config.json")


def read_config(path: pathlib.Path) -> Config:
    """A backbone's `config.json`; raises `UserError` unless it is one of a known family."""
    config = read_json(path)
    family = FAMILIES.get(config.get("model_type", "clip"))
    if family is None:
        known = " or ".join(repr(name) for name in FAMILIES)
        raise UserError(f"{path}: model_type is {config['model_type']!r}, expected {known}")
    try:
        return family.config.from_huggingface(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file; raises `UserError` that names the file and what is wrong."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; a backbone needs its {path.name}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a JSON object")
    return content


def huggingface_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """{HuggingFace name: shape} of every tensor that a backbone of this config has."""
    family = family_of(config)
    model = nnx.eval_shape(lambda: family.model(config, rng=None))
    targets = flat_names(nnx.to_pure_dict(nnx.state(model)))
    # An array of one number that claims the shape, so that nothing is allocated.
    hollow = {k: np.broadcast_to(np.float32(0), v.shape) for k, v in targets.items()}
    return {name: tensor.shape for name, tensor in write_rows(family.table(config), hollow)}


def raise_problems(where: object, problems: list[str]) -> None:
    """One report of all problems, if there are any."""
    if problems:
        lines = "\n  ".join(problems)
        noun = "problem" if len(problems) == 1 else "problems"
        raise UserError(f"{where}: {len(problems)} {noun} with its tensors:\n  {lines}")


def _fill(model: Model, tensors: Mapping[str, np.ndarray], directory: pathlib.Path) -> str:
    """Puts tensors into an abstract model and returns their fingerprint."""
    config = model.config
    shapes = huggingface_shapes(config)
    family = family_of(config)
    _, problems = convert(tensors, family.rules(config), shapes, ignored=family.ignored)
    raise_problems(directory, problems)
    targets = flat_names(nnx.to_pure_dict(nnx.state(model)))
    values = {ours: np.empty(target.shape, np.float32) for ours, target in targets.items()}
    jobs: list[tuple[str, str, list[np.ndarray]]] = []
    for ours, theirs, how in family.table(config):
        places = [values[name] for name in parts(ours)]
        if "{i}" in theirs:
            layers = range(len(places[0]))
            jobs += [(theirs.format(i=i), how, [place[i] for place in places]) for i in layers]
        else:
            jobs.append((theirs, how, [place[...] for place in places]))

    def copy(job: tuple[str, str, list[np.ndarray]]) -> tuple[str, str]:
        name, how, places = job
        pieces = [tensors[name]] if len(places) == 1 else np.split(tensors[name], len(places))
        for piece, place in zip(pieces, places, strict=True):
            _copy(TRANSFORMS[how].read(piece), place)
        return name, digest(name, tensors[name])

    with workers() as pool:
        found = combine(pool.map(copy, jobs), config)
    state = nnx.state(model)
    nested: dict = {}
    for path, value in values.items():
        *parents, last = path.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jax.device_put(value)  # `jnp.asarray` would compile a program per shape
    nnx.replace_by_pure_dict(state, nested)
    nnx.update(model, state)
    return found


def _copy(source: np.ndarray, place: np.ndarray) -> None:
    """place[...] = source; a transposed matrix goes in strips, which stay in cache (4x)."""
    if source.ndim == 2 and source.strides[0] < source.strides[1]:
        for start in range(0, source.shape[1], _STRIP):
            place[:, start : start + _STRIP] = source[:, start : start + _STRIP]
    else:
        place[...] = source


def _check_fingerprint(directory: pathlib.Path, found: str) -> None:
    file = directory / FINGERPRINT_FILE
    if file.is_file() and (written := read_json(file).get("fingerprint")) != found:
        raise UserError(
            f"{directory} has changed since it was converted: its fingerprint is {found}, "
            f"{file.name} says {written}; convert it again, or delete that file if the change "
            "was meant"
        )


def huggingface_tensors(model: Model) -> Iterator[tuple[str, np.ndarray]]:
    """(HuggingFace name, float32 array) of the backbone's own tensors, methods left out.

    Many of the arrays are transposed views.
    """
    table = family_of(model.config).table(model.config)
    return write_rows(table, flat_names(nnx.to_pure_dict(nnx.state(model))))


def save_backbone(
    model: Model, directory: str | os.PathLike, tokenizer: str | os.PathLike | None
) -> None:
    """Writes a directory that `load_backbone` and transformers' models read.

    The tokenizer's files are copied from the directory `tokenizer`. The directory appears whole
    or not at all; one that holds anything is not touched.
    """
    tensors = dict(huggingface_tensors(model))
    with new_directory(directory) as made:
        write_backbone(made, model.config, tensors)
        copy_tokenizer(tokenizer, made, family_of(model.config))


def write_backbone(
    directory: pathlib.Path,
    config: Config,
    tensors: Mapping[str, np.ndarray],
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes weights, one after another, and `config.json`.

    Dtypes are kept, but for float64, which becomes float32. `advance` hears of bytes written.
    """
    specs = {name: (value.shape, _stored(value.dtype)) for name, value in tensors.items()}

    def one_by_one() -> Iterator[tuple[str, np.ndarray]]:
        for name, value in tensors.items():
            yield name, value
            advance(value.nbytes)

    write_safetensors(directory / "model.safetensors", specs, one_by_one(), {"format": "pt"})
    # transformers would otherwise take the dtype of whichever tensor comes first.
    content = {**config.to_huggingface(), "dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(content, indent=2) + "\n")


def _stored(dtype: np.dtype) -> np.dtype:
    return np.dtype("<f4") if dtype == np.float64 else dtype


def copy_tokenizer(
    source: str | os.PathLike | None,
    directory: pathlib.Path,
    family: Family,
) -> list[str]:
    """Copies what of a tokenizer the directory `source` has; returns the files' names."""
    files = family.tokenizer_files
    found = [name for name in files if source and (pathlib.Path(source) / name).is_file()]
    for name in found:
        shutil.copyfile(pathlib.Path(source) / name, directory / name)  # type: ignore[arg-type]
    return found


@contextlib.contextmanager
def new_directory(directory: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A directory to fill, which gets its name when it is complete and vanishes otherwise.

    Raises:
      UserError: there is something already, or nothing can be written there.
    """
    target = pathlib.Path(directory)
    try:
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise UserError(f"{target} exists and is not empty; choose another directory")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
            made = pathlib.Path(scratch) / "backbone"
            made.mkdir()
            yield made
            if target.exists():
                target.rmdir()
            os.rename(made, target)
    except OSError as error:
        raise UserError(f"{target}: {error.strerror or error}") from error
