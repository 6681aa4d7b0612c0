"""A backbone directory in HuggingFace's layout: config.json, safetensors, tokenizer files."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from uniadapter_jax.backbones.clip import CLIP, CLIPConfig
from uniadapter_jax.errors import UserError
from uniadapter_jax.partition import flat_names
from uniadapter_jax.randomness import generator
from uniadapter_jax.weights.names import HUGGINGFACE_CLIP, IGNORED, TRANSFORMS

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)
_SHOWN_PROBLEMS = 20


@dataclasses.dataclass
class Backbone:
    """A model in memory, where it came from, and the fingerprint that its adapters carry."""

    model: CLIP
    source: str
    fingerprint: str


def load_backbone(source: str, *, seed: int = 0, **options: object) -> Backbone:
    """A backbone from a directory, or with random weights from `random:<config.json>`.

    `options` go to `CLIP` (dtype, remat, frame_chunks); `seed` draws the random weights.

    Raises:
      UserError: no such directory or file, not a CLIP, or tensors missing, left over or
        misshaped: all of them in one report.
    """
    if source.startswith("random:"):
        config = CLIPConfig.from_huggingface(_read_config(pathlib.Path(source[7:])))
        model = CLIP(config, rng=generator(seed, "backbone"), **options)  # type: ignore[arg-type]
    else:
        directory = pathlib.Path(source)
        if not directory.is_dir():
            raise UserError(
                f"backbone {source!r} is not a directory; pass --config.backbone=DIR with "
                "config.json and model.safetensors (HuggingFace layout), or random:<config.json>"
            )
        config = CLIPConfig.from_huggingface(_read_config(directory / "config.json"))
        model = nnx.eval_shape(lambda: CLIP(config, rng=None, **options))  # type: ignore[arg-type]
        _fill(model, directory)
    return Backbone(model, source, fingerprint(huggingface_tensors(model), config))


def _read_config(path: pathlib.Path) -> dict:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; a backbone needs its config.json") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict) or config.get("model_type", "clip") != "clip":
        found = config.get("model_type") if isinstance(config, dict) else type(config).__name__
        raise UserError(f"{path}: model_type is {found!r}, expected 'clip'")
    return config


@contextlib.contextmanager
def _open_tensors(directory: pathlib.Path):  # type: ignore[no-untyped-def]
    """Yields {name: function that reads it} over one safetensors file or its shards."""
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if single.is_file():
        files = [single]
    elif index.is_file():
        shards = set(json.loads(index.read_text())["weight_map"].values())
        files = sorted(directory / shard for shard in shards)
    else:
        raise UserError(f"{directory}: neither model.safetensors nor its index is there")
    with contextlib.ExitStack() as stack:
        readers: dict[str, Callable[[], np.ndarray]] = {}
        for file in files:
            try:
                handle = stack.enter_context(safetensors.safe_open(file, framework="numpy"))
            except (OSError, safetensors.SafetensorError) as error:
                raise UserError(f"{file}: cannot be read as safetensors ({error})") from error
            for name in handle.keys():  # noqa: SIM118 (the handle is no mapping)
                readers[name] = lambda handle=handle, name=name: handle.get_tensor(name)
        yield readers


def _fill(model: nnx.Module, directory: pathlib.Path) -> None:
    """Puts the directory's tensors into an abstract model; every problem in one report."""
    targets = flat_names(nnx.to_pure_dict(nnx.state(model)))
    problems: list[str] = []
    values: dict[str, np.ndarray] = {}
    with _open_tensors(directory) as readers:
        left_over = set(readers) - set(IGNORED)
        for ours, theirs, how in HUGGINGFACE_CLIP:
            shape = targets[ours].shape
            stacked = "{i}" in theirs
            value = np.empty(shape, np.float32)
            for i in range(shape[0]) if stacked else (0,):
                name = theirs.format(i=i)
                left_over.discard(name)
                if name not in readers:
                    problems.append(f"missing: {name}")
                    continue
                tensor = TRANSFORMS[how].read(readers[name]())
                part = value[i] if stacked else value
                if tensor.shape != part.shape:
                    problems.append(
                        f"shape of {name}: {tensor.shape} after {how!r}, config says {part.shape}"
                    )
                    continue
                part[...] = tensor.astype(np.float32)
            values[ours] = value
        problems += [f"left over: {name}" for name in sorted(left_over)]
    if problems:
        shown = problems[:_SHOWN_PROBLEMS]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        lines = "\n  ".join(shown)
        raise UserError(f"{directory}: {len(problems)} tensors do not fit its config:\n  {lines}")
    state = nnx.state(model)
    nested: dict = {}
    for path, value in values.items():
        *parents, last = path.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jax.numpy.asarray(value)
    nnx.replace_by_pure_dict(state, nested)
    nnx.update(model, state)


def huggingface_tensors(model: CLIP) -> Iterable[tuple[str, np.ndarray]]:
    """(HuggingFace name, float32 array) of the backbone's own tensors, methods left out."""
    ours_to_value = flat_names(nnx.to_pure_dict(nnx.state(model)))
    for ours, theirs, how in HUGGINGFACE_CLIP:
        value = np.asarray(jax.device_get(ours_to_value[ours]), np.float32)
        if "{i}" not in theirs:
            yield theirs, _contiguous(TRANSFORMS[how].write(value))
            continue
        for i, part in enumerate(value):
            yield theirs.format(i=i), _contiguous(TRANSFORMS[how].write(part))


def _contiguous(tensor: np.ndarray) -> np.ndarray:
    """C order, as safetensors needs; unlike `np.ascontiguousarray` a scalar stays a scalar."""
    return np.array(tensor, order="C")


def fingerprint(tensors: Iterable[tuple[str, np.ndarray]], config: CLIPConfig) -> str:
    """SHA-256 over every tensor (name, shape, float32 little-endian bytes) and the config.

    Tensors are hashed one by one and the digests in order of their names, so no order of files
    or shards matters; half-precision sources are widened first, so they hash as float32.
    """
    digests = []
    for name, tensor in tensors:
        head = f"{name} {list(tensor.shape)} float32 ".encode()
        digests.append((name, hashlib.sha256(head + _bytes(tensor)).hexdigest()))
    whole = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    for name, digest in sorted(digests):
        whole.update(f"{name}={digest}\n".encode())
    return whole.hexdigest()


def _bytes(tensor: np.ndarray) -> bytes:
    return np.asarray(tensor, "<f4").tobytes()


def save_backbone(
    model: CLIP, directory: str | os.PathLike, tokenizer: str | os.PathLike | None
) -> None:
    """Writes a directory that `load_backbone` and transformers' `CLIPModel` read.

    The tokenizer's files are copied from the directory `tokenizer`. The directory appears whole
    or not at all; an existing one is not touched.
    """
    target = pathlib.Path(directory)
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} exists and is not empty; choose another directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        made = pathlib.Path(scratch) / "backbone"
        made.mkdir()
        tensors = dict(huggingface_tensors(model))
        safetensors.numpy.save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(model.config.to_huggingface(), indent=2)
        (made / "config.json").write_text(text + "\n")
        for name in TOKENIZER_FILES if tokenizer else ():
            file = pathlib.Path(tokenizer) / name  # type: ignore[arg-type]
            if file.is_file():
                shutil.copy(file, made / name)
        if target.exists():
            target.rmdir()
        os.rename(made, target)
