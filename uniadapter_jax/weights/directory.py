"""A backbone directory in HuggingFace's layout: config.json, safetensors, tokenizer files."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from uniadapter_jax.adapters.partition import flat_names
from uniadapter_jax.common.digests import DIGESTS_FILE, MOST_BYTES, check_digests, write_digests
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError, read_bytes, read_json, write_json
from uniadapter_jax.common.new_directory import new_directory
from uniadapter_jax.common.packaged import models_hint, packaged
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.weights.errors import printable
from uniadapter_jax.weights.families import Config, Family, Model, family_of
from uniadapter_jax.weights.fingerprint import combine, digest, fingerprint, workers
from uniadapter_jax.weights.hub.fetch import located
from uniadapter_jax.weights.layout import (
    CONFIG_BYTES,
    CONFIG_FILE,
    FINGERPRINT_FILE,
    WEIGHT_FILE,
    read_config,
)
from uniadapter_jax.weights.names.base import TRANSFORMS, parts, write_rows
from uniadapter_jax.weights.names.rules import convert
from uniadapter_jax.weights.needed import BACKBONE, CONFIG
from uniadapter_jax.weights.safetensors_file import read_weights, weight_file, write_safetensors

_STRIP = 64
_MOST_PROBLEMS = 1000  # lines of a report


@dataclasses.dataclass
class Backbone:
    """A model in memory, where it came from, and the fingerprint that its adapters carry.

    `model` is of the class that the config's family names.
    """

    model: Any
    source: str
    fingerprint: str


def load_backbone(
    source: str, *, seed: int = 0, field: str = "backbone", **options: object
) -> Backbone:
    """Loads a backbone from a directory or the hub, or makes one for `random:<config.json>`.

    `options` go to the model that `model_type` in config.json names; `Family.options` lists them.
    `seed` draws the random weights. `field` is where the name stands, for errors.

    Raises:
      UserError: no such directory, file or repository, an unknown model, tensors missing, left
        over or misshaped (all in one report), or weights changed since `convert` made the
        directory.
    """
    source = located(source, field, BACKBONE).directory
    config = _config_of(source, field)
    family = family_of(config)
    if source.startswith("random:"):
        _check_memory(config, source)
        model = family.model(config, rng=generator(seed, "backbone"), **options)
        return Backbone(model, source, fingerprint(huggingface_tensors(model), config))
    directory = pathlib.Path(source)
    check_digests(directory)
    file = weight_file(directory)
    try:
        tensors = family.canonical(read_weights(file), config)
    except FileError:
        raise
    except UserError as error:
        raise FileError(file, str(error)) from error
    model = nnx.eval_shape(lambda: family.model(config, rng=None, **options), graph=True)
    measured = _fill(model, tensors, file)
    check_fingerprint(directory, measured)
    return Backbone(model, source, measured)


def backbone_family(source: str, field: str = "backbone") -> Family:
    """The family of the backbone at `source`; only its config is read."""
    source = located(source, field, CONFIG).directory
    return family_of(_config_of(source, field))


def _config_of(source: str, field: str) -> Config:
    if source.startswith("random:"):
        return read_config(pathlib.Path(packaged(source.removeprefix("random:"))))
    check_place(source, field)
    return read_config(pathlib.Path(source) / CONFIG_FILE)


def check_place(source: str, field: str) -> None:
    """Raises `UserError` unless `source`, which `located` found, is a directory or random."""
    if not source.startswith("random:") and not pathlib.Path(source).is_dir():
        what = "a file, not a directory" if os.path.exists(source) else "there is no such directory"
        raise UserError(
            f"{field}={source}: {what}. A directory with config.json and "
            "model.safetensors (HuggingFace layout) is meant, OWNER/NAME of a repository on the "
            f"hub, or random:<config.json>; {models_hint(source)}"
        )


def _check_memory(config: Config, source: str) -> None:
    """Raises `UserError` where random weights would not fit into this machine's memory."""
    needed = 4 * sum(map(math.prod, huggingface_shapes(config).values()))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UserError(
            f"{source}: its weights would take {needed:,} bytes, this machine has {memory:,}"
        )


def huggingface_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """{HuggingFace name: shape} of every tensor that a backbone of this config has."""
    family = family_of(config)
    model = nnx.eval_shape(lambda: family.model(config, rng=None), graph=True)
    targets = flat_names(nnx.to_pure_dict(nnx.state(model, graph=True)))
    # A broadcast number has the shape without taking memory.
    hollow = {k: np.broadcast_to(np.float32(0), v.shape) for k, v in targets.items()}
    return {name: tensor.shape for name, tensor in write_rows(family.table(config), hollow)}


def raise_problems(where: object, problems: list[str]) -> None:
    """Raises `UserError` with one report of all problems, if there are any."""
    if problems:
        shown = [printable(problem, 500) for problem in problems[:_MOST_PROBLEMS]]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        lines = "\n  ".join(shown)
        noun = "problem" if len(problems) == 1 else "problems"
        raise UserError(f"{where}: {len(problems)} {noun} with its tensors:\n  {lines}")


def _fill(model: Model, tensors: Mapping[str, np.ndarray], file: pathlib.Path) -> str:
    """Puts the tensors of `file` into an abstract model and returns their fingerprint."""
    config = model.config
    shapes = huggingface_shapes(config)
    family = family_of(config)
    _, problems = convert(tensors, family.rules(config), shapes, ignored=family.ignored)
    raise_problems(file, problems)
    targets = flat_names(nnx.to_pure_dict(nnx.state(model, graph=True)))
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
        measured = combine(pool.map(copy, jobs), config)
    state = nnx.state(model, graph=True)
    nested: dict = {}
    for path, value in values.items():
        *parents, last = path.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jax.device_put(value)  # `jnp.asarray` would compile a program per shape
    nnx.replace_by_pure_dict(state, nested)
    nnx.update(model, state)
    return measured


def _copy(source: np.ndarray, place: np.ndarray) -> None:
    """place[...] = source; a transposed matrix goes in strips, which stay in cache (4x)."""
    if source.ndim == 2 and source.strides[0] < source.strides[1]:
        for start in range(0, source.shape[1], _STRIP):
            place[:, start : start + _STRIP] = source[:, start : start + _STRIP]
    else:
        place[...] = source


def check_fingerprint(directory: pathlib.Path, measured: str) -> None:
    """Raises `UserError` if `directory` notes another fingerprint than `measured`."""
    file = directory / FINGERPRINT_FILE
    try:
        written = read_json(file, limit=CONFIG_BYTES).get("fingerprint")
    except FileNotFoundError:
        return
    if written != measured:
        raise UserError(
            f"{directory} has changed since it was converted: the fingerprint of {WEIGHT_FILE} "
            f"and {CONFIG_FILE} is {measured}, {file.name} says {str(written)[:80]}; convert it "
            f"again, or delete {file.name} and {DIGESTS_FILE} if the change was meant"
        )


def huggingface_tensors(model: Model) -> Iterator[tuple[str, np.ndarray]]:
    """(HuggingFace name, float32 array) of the backbone's tensors, without those of methods.

    Many of the arrays are transposed views.
    """
    table = family_of(model.config).table(model.config)
    return write_rows(table, flat_names(nnx.to_pure_dict(nnx.state(model, graph=True))))


def save_backbone(
    model: Model, directory: str | os.PathLike, tokenizer: str | os.PathLike | None
) -> None:
    """Writes a directory that `load_backbone` and transformers' models read.

    The tokenizer's files are copied from the directory `tokenizer`. The directory appears complete
    or not at all; one that holds anything is not touched.
    """
    with new_directory(directory) as temporary:
        fill_backbone(temporary, model, tokenizer)


def fill_backbone(root: pathlib.Path, model: Model, tokenizer: str | os.PathLike | None) -> None:
    """Writes the files of `save_backbone` into an existing directory."""
    tensors = dict(huggingface_tensors(model))
    write_backbone(root, model.config, tensors)
    copy_tokenizer(tokenizer, root, family_of(model.config))
    seal_backbone(root, {"fingerprint": fingerprint(tensors.items(), model.config)})


def seal_backbone(root: pathlib.Path, note: Mapping[str, str]) -> None:
    """Writes, as the last files, the `note` with the fingerprint, and the digests.

    The large weights have no digest: loading computes their fingerprint anyway.
    """
    write_json(root / FINGERPRINT_FILE, note)
    write_digests(root, [p.name for p in root.iterdir() if p.is_file() and p.name != WEIGHT_FILE])


def write_backbone(
    directory: pathlib.Path,
    config: Config,
    tensors: Mapping[str, np.ndarray],
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes weights, one after another, and `config.json`.

    Dtypes are kept, except that float64 becomes float32. `advance` is called with bytes written.
    """
    specs = {name: (value.shape, _stored(value.dtype)) for name, value in tensors.items()}

    def one_by_one() -> Iterator[tuple[str, np.ndarray]]:
        for name, value in tensors.items():
            yield name, value
            advance(value.nbytes)

    write_safetensors(directory / WEIGHT_FILE, specs, one_by_one(), {"format": "pt"})
    # Without it transformers takes the dtype of the first tensor.
    content = {**config.to_huggingface(), "dtype": "float32"}
    (directory / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n")


def _stored(dtype: np.dtype) -> np.dtype:
    return np.dtype("<f4") if dtype == np.float64 else dtype


def copy_tokenizer(
    source: str | os.PathLike | None,
    directory: pathlib.Path,
    family: Family,
) -> list[str]:
    """Copies the tokenizer files that the directory `source` has; returns their names.

    Raises:
      UserError: a file of `source` has changed since it was written.
    """
    files = family.tokenizer_files
    if source:
        check_digests(source)
    names = [name for name in files if source and (pathlib.Path(source) / name).is_file()]
    for name in names:
        content = read_bytes(pathlib.Path(source) / name, MOST_BYTES)  # type: ignore[arg-type]
        (directory / name).write_bytes(content)
    return names
