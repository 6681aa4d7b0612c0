"""From directories to a model for inference."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from uniadapter_jax.adapters.partition import Partition, flat_names, partition
from uniadapter_jax.adapters.registry import Method, get_method
from uniadapter_jax.backbones.fused_attention import Fused
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.common.types import PyTree
from uniadapter_jax.data.tokenizers.clip import Tokenizer
from uniadapter_jax.inference import arguments
from uniadapter_jax.inference.blip_model import AdaptedBLIP
from uniadapter_jax.inference.clip_options import clip_options
from uniadapter_jax.inference.model import AdaptedModel
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.parallel.attention import tried_form
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.tasks.retrieval.similarity import SIMILARITIES
from uniadapter_jax.weights.adapter_directory import AdapterFiles, check_tensors, read_adapter
from uniadapter_jax.weights.directory import Backbone, load_backbone
from uniadapter_jax.weights.errors import printable
from uniadapter_jax.weights.families import FAMILIES, check_tokenizer, family_of
from uniadapter_jax.weights.hub.fetch import located
from uniadapter_jax.weights.needed import ADAPTER

DTYPES = ("float32", "bfloat16")
MODELS = (AdaptedModel, AdaptedBLIP)


def load_model(
    backbone: str | os.PathLike[str],
    adapter: str | os.PathLike[str] | None = None,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    similarity: str | None = None,
    dtype: str = "float32",
    batch_size: int = 64,
    seed: int = 0,
    merge: int | None = None,
) -> AdaptedModel | AdaptedBLIP:
    """A model for inference, of the family that the backbone's config names.

    Args:
      backbone: a directory in HuggingFace's layout, `owner/name[@revision]` of a repository on the
        hub, or `random:<config.json>` with `seed`.
      adapter: a directory that `export` (or `convert`) wrote, or the name of a repository that
        `export --push` did; None is the backbone alone.
      tokenizer: a directory of tokenizer files; by default the adapter's, else the backbone's.
        Without any, ids work and strings raise.
      similarity: of CLIP, q_score, mean_pool or mean_pool_unit; by default what the adapter was
        trained with.
      dtype: of frozen weights and activations, float32 or bfloat16.
      batch_size: frames or texts that are encoded at once.
      merge: of CLIP, tokens of a picture that every layer merges into others (`compute.merge`); by
        default as the adapter was trained.

    Raises:
      UserError: files are missing or damaged; the adapter belongs to another backbone, another
        tokenizer or another version of its method, or its tensors are not exactly the method's.
        Both sides are said.
    """
    for name, path in (("backbone", backbone), ("adapter", adapter), ("tokenizer", tokenizer)):
        optional = name != "backbone" and path is None
        if not optional and (not isinstance(path, str | os.PathLike) or not os.fspath(path)):
            raise UserError(f"{name}={path!r}: a path is meant")
    arguments.whole(batch_size, "batch_size", 1)
    arguments.whole(seed, "seed", 0)
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
    base = load_backbone(os.fspath(backbone), seed=seed, dtype=dtype)
    if adapter is not None:
        adapter = located(os.fspath(adapter), "adapter", ADAPTER).directory
    files = None if adapter is None else read_adapter(pathlib.Path(adapter))
    family = family_of(base.model.config)
    clips = clip_options(files.clips if files else {}, adapter, base.model.config.image_size)
    if merge is not None:
        clips = dataclasses.replace(clips, merge=arguments.whole(merge, "merge", 0))
    if clips.merge and "merge" not in family.options:
        raise UserError(f"merge={clips.merge}: {family.title} reads all tokens of a picture")
    if clips.merge:
        base.model.vision.merge = clips.merge
    if files is None:
        part = partition(base.model, None, dtype)
    else:
        part = put_adapter(base, files, dtype, adapter)
    part.fused = attention_of_device()
    chosen = next(m for m in MODELS if any(family is FAMILIES[name] for name in m.families))
    if similarity is not None and "similarity" not in get_task(chosen.kind).options:
        raise UserError(
            f"similarity={similarity!r} is CLIP's; {family.title} compares by cosine, then matches"
        )
    task = _task(files, similarity)
    return chosen(
        part,
        base.model.config,
        _tokenizer(base, adapter, tokenizer, files.tokenizer if files else ""),
        method=files.method if files else "zero_shot",
        fingerprint=base.fingerprint,
        task=task,
        batch_size=batch_size,
        clips=clips,
    )


def put_adapter(
    base: Backbone, adapter: AdapterFiles, dtype: str = "float32", where: object = "the adapter"
) -> Partition:
    """Puts an adapter, which `where` holds, into a backbone; strict, see `load_model`."""
    if adapter.fingerprint != base.fingerprint:
        raise UserError(
            f"{where} was trained on another backbone: it names the fingerprint "
            f"{printable(adapter.fingerprint)} ({printable(adapter.backbone) or 'no path'}), "
            f"{base.source} has "
            f"{base.fingerprint}"
        )
    method = get_method(adapter.method)
    try:  # shapes first: options that ask for more than there is allocate nothing
        expected = trainable_shapes(base, method, adapter.options)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    check_tensors(where, adapter.tensors, flat_names(expected))
    options = ConfigDict(dict(adapter.options))
    method.attach(base.model, options, generator(0, "adapters"))
    part = partition(base.model, method.filter(options), dtype)
    part.trainable = jax.tree.map_with_path(
        lambda path, _: jnp.asarray(adapter.tensors[".".join(entry.key for entry in path)]),
        part.trainable,
    )
    return part


def trainable_shapes(base: Backbone, method: Method, options: Mapping[str, Any]) -> PyTree:
    """Shapes of what the method trains in such a backbone; raises `UserError` for bad options."""

    def attached() -> Any:
        model, chosen = type(base.model)(base.model.config, rng=None), ConfigDict(dict(options))
        method.attach(model, chosen, None)
        return partition(model, method.filter(chosen)).trainable

    return nnx.eval_shape(attached, graph=True)


def _task(files: AdapterFiles | None, similarity: str | None) -> dict[str, Any]:
    task = dict(files.task) if files else {}
    if similarity is not None:
        if similarity not in SIMILARITIES:
            raise UserError(f"similarity {similarity!r}: choose one of {', '.join(SIMILARITIES)}")
        task["similarity"] = similarity
    return task


def _tokenizer(base: Backbone, adapter: Any, given: Any, expected: str) -> Tokenizer:
    of_backbone = base.source.removeprefix("random:")
    family = family_of(base.model.config)
    files = family.tokenizer_files
    if given and not _has_any(given, files):
        raise UserError(f"tokenizer={os.fspath(given)!r} holds none of {', '.join(files)}")
    directory = given or next(
        (d for d in (adapter, of_backbone) if d and _has_any(d, files)), of_backbone
    )
    tokenizer = family.load_tokenizer(directory)
    if expected and tokenizer.fingerprint and tokenizer.fingerprint != expected:
        raise UserError(
            f"the tokenizer in {directory} has the fingerprint {tokenizer.fingerprint}, the "
            f"adapter was trained with {expected}; pass tokenizer=DIR with that one"
        )
    if tokenizer.vocab_size:
        where = f"the tokenizer in {directory}"
        check_tokenizer(tokenizer, base.model.config, where, base.source)
    return tokenizer


def _has_any(directory: str | os.PathLike[str], files: Sequence[str]) -> bool:
    return any((pathlib.Path(directory) / name).is_file() for name in files)


def attention_of_device() -> Fused | None:
    """The form of attention of this process' first device; the plain one if that fails a trial."""
    try:
        return tried_form("auto", meshes.one_device())
    except UserError as error:
        print(f"warning: {error}. Plain attention is used", file=sys.stderr)
        return None
