"""The prefix cache of a run: what is frozen ahead of its method, computed once for all runs.

The cache's key is what its rows depend on: the backbone, the records, how frames and texts are
taken, and where the towers are entered (`backbones.prefix`). So runs with other seeds, and methods
that begin at the same layer, share one.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from uniadapter_jax.adapters.base import Method
from uniadapter_jax.adapters.partition import Partition
from uniadapter_jax.backbones.prefix import cut_at
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import Array, PyTree
from uniadapter_jax.data.loading.pipeline import Texts, clip_batches
from uniadapter_jax.data.prefix_cache import PrefixCache
from uniadapter_jax.parallel import launch
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.parallel.calls import fetched
from uniadapter_jax.parallel.preemption import pass_by
from uniadapter_jax.parallel.progress import Progress, say
from uniadapter_jax.tasks.base import Kind, Subject

FIELD = "config.data.cache='prefix'"
VERSION = 1  # grows when the same key would give other rows
CALL_BYTES = 2**27  # about so much that a call gives, on every device and on the host


def checked_entries(
    config: ConfigDict, kind: Kind, method: Method, model: Any
) -> dict[str, int | str]:
    """{tower: where the method begins}, see `entries`; {} for a run without a cache.

    Where what enters the method changes from step to step, there can be none: 'auto' does without,
    and 'prefix' raises `UserError`, naming the field. `model` is the backbone with the method
    attached.
    """
    if config.data.cache == "none" or method.trainable is None:
        return {}
    reason, places = _why_not(config, kind), {}
    if not reason:
        places = entries(method, model)
        if not all(places.values()):
            advice = "; set config.method.from_layer" if "from_layer" in config.method else ""
            name = config.method.name
            reason = f"{FIELD}: method {name!r} acts or trains from the first layer on{advice}"
    if reason and config.data.cache != "auto":
        raise UserError(reason)
    return {} if reason else places


def _why_not(config: ConfigDict, kind: Kind) -> str:
    """Why the config lets nothing be kept, whatever the method is; "" if it does not."""
    if not kind.enters_prefix:
        return f"{FIELD}: task {kind.name!r} does not train from it; set it to 'none'"
    if config.compute.merge:
        return (
            f"config.compute.merge={config.compute.merge}: config.data.cache keeps all tokens; "
            "set one of both to its default"
        )
    for name, still in (("augment", "none"), ("sampling", None)):
        value = config.data[name]
        if value == "random" or value != (still or value):
            return (
                f"config.data.{name}={value!r}: with {FIELD} every frame is read once for all "
                f"epochs; set it to {still or 'evenly'!r}, or config.data.cache to 'none'"
            )
    return ""


def entries(method: Method, model: Any) -> dict[str, int | str]:
    """{tower: where the method begins}: a layer, "behind" all layers, or 0, at the first."""
    at = {
        tower.name: cut_at(tower.owner.blocks, getattr(model.config, tower.name).layers)
        for tower in model.towers()
    }
    if not method.behind_layers:
        return dict(at)
    reads_all = any(tower.owner.side is not None for tower in model.towers())
    return dict.fromkeys(at, "all" if reads_all else "behind")


class Prefix:
    """The cache of a run. `open` it, `fill` it, then train from `cache`."""

    def __init__(self, run: Subject, entries: Mapping[str, int | str], facts: Mapping[str, Any]):
        assert run.data.train is not None
        data = run.config.data
        self.run, self.records = run, run.data.train
        self.key = {
            "version": VERSION,
            "entries": dict(entries),
            "compute.dtype": run.config.compute.dtype,
            **{name: facts[name] for name in ("backbone", "tokenizer", "data.records")},
            "image_size": run.model_config.image_size,
            **{name: data[name] for name in ("frames", "sampling", "resize")},
            **{name: data[name] for name in ("words", "preprocess", "max_words")},
        }
        size = run.model_config.image_size
        rows = {
            "frames": jax.ShapeDtypeStruct((1, 1, size, size, 3), jnp.uint8),
            "text": jax.ShapeDtypeStruct((1, data.words), jnp.int32),
        }
        self.programs = _programs(run.partition, run.mesh, data.cache_dtype)
        parts = run.partition.trainable, run.partition.frozen
        frames, text = (
            jax.eval_shape(self.programs[name], *parts, row).shape for name, row in rows.items()
        )
        root = data.cache_dir or f"{pathlib.Path(self.records.root)}.cache"
        self.cache = PrefixCache.of(
            root, self.key, self.records, data.frames, (frames[2:], text[1:]), data.cache_dtype
        )

    def fill(self) -> None:
        """Makes what is missing, on all processes together; says how large it is before."""
        cache = self.cache
        _together(lambda: cache.open(self.key))
        clips, captions = (_missing(table) for table in (cache.frames, cache.text))
        say(
            f"prefix cache {cache.directory}: {cache.frames.bytes / 1e9:.3g} GB of "
            f"{cache.frames.first[-1]:,} frames, {cache.text.bytes / 1e9:.3g} GB of "
            f"{cache.text.groups:,} captions; to compute: frames of {len(clips):,} clips, "
            f"{len(captions):,} captions"
        )
        self._fill_frames(clips)
        self._fill_texts(captions)
        _together(self._check_full)

    def _size(self, row_bytes: int, groups: int) -> int:
        """Groups of a call, which the mesh divides."""
        fit = max(1, CALL_BYTES // row_bytes)
        return meshes.round_up(self.run.mesh, min(fit, groups, self.run.config.eval.batch_size * 8))

    def _call(self, name: str, batch: np.ndarray, size: int) -> Array:
        placed = meshes.put_batch({name: batch}, self.run.mesh, size)[name]
        part = self.run.partition
        return self.programs[name](part.trainable, part.frozen, placed)

    def _fill_frames(self, clips: np.ndarray) -> None:
        if not len(clips):
            return
        table, data = self.cache.frames, self.run.config.data
        size = self._size(table.row_bytes * data.frames, len(clips))
        counts = np.diff(table.first)
        batches = clip_batches(
            self.records.subset(clips),
            data,
            image_size=self.key["image_size"],
            global_batch=size,
            rows=meshes.rows_of_process(self.run.mesh, size),
        )

        def calls() -> Iterator[tuple[np.ndarray, PyTree]]:
            for start, host in zip(range(0, len(clips), size), batches, strict=True):
                yield clips[start : start + size], self._call("frames", host["frames"], size)

        for some, known in self._made("frames of clips", calls(), len(clips)):
            table.write(some, [x[: counts[i]] for i, x in zip(some, known, strict=False)])

    def _fill_texts(self, captions: np.ndarray) -> None:
        if not len(captions):
            return
        table, run = self.cache.text, self.run
        size = self._size(table.row_bytes, len(captions))
        rows = meshes.rows_of_process(run.mesh, size)
        texts = Texts.from_config(run.tokenizer, run.config.data)
        said = [caption for captions in self.records.captions for caption in captions]

        def calls() -> Iterator[tuple[np.ndarray, PyTree]]:
            for start in range(0, len(captions), size):
                chosen = captions[np.minimum(start + rows, len(captions) - 1)]
                ids = texts.encode(texts.rule.captions([said[i] for i in chosen]))
                yield captions[start : start + size], self._call("text", ids, size)

        for some, known in self._made("captions", calls(), len(captions)):
            table.write(some, [x[None] for x in known[: len(some)]])

    def _made(
        self, what: str, calls: Iterator[tuple[np.ndarray, PyTree]], count: int
    ) -> Iterator[tuple[np.ndarray, Any]]:
        progress = Progress(f"prefix cache: {what}", count, what.split()[-1])
        for some, known in fetched(calls):
            yield some, known
            pass_by()
            progress.advance(len(some))

    def _check_full(self) -> None:
        for table in (self.cache.frames, self.cache.text):
            if not table.done().all():
                raise UserError(
                    f"{self.cache.directory}: {table.path.name} is not complete after it was "
                    "filled; is another command removing it?"
                )


def _programs(part: Partition, mesh: Any, dtype: str) -> dict[str, Callable[..., Array]]:
    """{table: compiled (trainable, frozen, its rows) -> what is known of them}."""

    def frames(trainable: PyTree, frozen: PyTree, rows: Array) -> Array:
        return part.merge(trainable, frozen).known_frames(rows).astype(dtype)

    def text(trainable: PyTree, frozen: PyTree, rows: Array) -> Array:
        return part.merge(trainable, frozen).known_text(rows).astype(dtype)

    everywhere = meshes.replicated(mesh)
    return {f.__name__: jax.jit(f, out_shardings=everywhere) for f in (frames, text)}


def _missing(table: Any) -> np.ndarray:
    """Groups that are not complete on some process' disk; the same on all processes."""
    here = np.packbits(table.done()).tobytes().hex()
    sides = launch.exchange(here)
    done = [np.unpackbits(np.frombuffer(bytes.fromhex(side), np.uint8)) for side in sides]
    return np.flatnonzero(np.min(done, axis=0)[: table.groups] == 0)


def _together(do: Callable[[], None]) -> None:
    """Does it on every process; raises `UserError` on all if one does."""
    said = ""
    try:
        do()
    except UserError as error:
        if jax.process_count() == 1:
            raise
        said = str(error)
    for side in launch.exchange(said):
        if side:
            raise UserError(side)
