"""What to change if a run does not fit: the smallest change that really compiles."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.planning.abstract import TRAIN, AbstractRun, build
from uniadapter_jax.planning.compilation import Program, compile_program
from uniadapter_jax.planning.topology import Slice, device_counts
from uniadapter_jax.tasks.matching.programs import RERANK

_REMAT = ("none", "dots", "full")
# Into how many parts weights are cut that are whole: more parts save an eighth of them at most.
_PARTS = 8
_MESH = {"mesh.data", "mesh.fsdp"}  # fields with which the mesh is another


Fields = dict[str, str | int]


@dataclasses.dataclass(frozen=True)
class Change:
    """Fields of the config that make a program fit; the run and the program with them."""

    fields: Fields
    run: AbstractRun
    program: Program


def find_change(run: AbstractRun, failed: Program, say: Callable[[str], None]) -> Change | None:
    """The first change with which the failed program fits; None if none does.

    For the train step: remat of products' surroundings, of whole layers, then frozen weights cut
    over fsdp, then ever more parts of a batch one after another, then ever half the batch, each
    with what came before it. For evaluation: ever half its batch, then cut weights; for re-ranking
    ever half its pairs before that.
    """
    for fields in _candidates(run, failed.name):
        config = run.config.copy_and_resolve_references()
        with config.unlocked():
            config.update_from_flattened_dict(fields)
        devices = list(run.mesh.devices.flat)
        try:
            mesh = meshes.make_mesh(config.mesh, devices) if _MESH & fields.keys() else run.mesh
            changed = build(config, run.model_config, mesh, devices[0].platform)
        except UserError:
            continue  # the task, the backbone or the slice does not have it
        program = compile_program(changed, failed.name, failed.limit)
        asked = ", ".join(f"--config.{name}={value}" for name, value in fields.items())
        say(f"{failed.name} with {asked}: {'fits' if program.fits else 'does not fit'}")
        if program.fits:
            return Change(fields, changed, program)
    return None


def _candidates(run: AbstractRun, name: str) -> Iterator[Fields]:
    shards, cut = meshes.batch_shards(run.mesh), _cut_weights(run)
    if name == RERANK:
        rows = run.config.task.rerank_rows
        while (rows := rows // 2) > 0:
            yield {"task.rerank_rows": rows}
    if name != TRAIN:
        size = meshes.round_up(run.mesh, run.config.eval.batch_size)
        while (smaller := size // shards // 2 * shards) > 0:
            size = smaller
            yield {"eval.batch_size": size}
        if cut:
            yield {**cut, "eval.batch_size": size}
        return
    train, fields = run.config.train, Fields()
    for remat in _REMAT[_REMAT.index(run.config.compute.remat) + 1 :]:
        fields["compute.remat"] = remat
        yield dict(fields)
    if cut:
        fields |= cut
        yield dict(fields)
    count = train.accumulation
    while train.batch_size // shards % (2 * count) == 0:
        count *= 2
        yield {**fields, "train.accumulation": count}
    size = train.batch_size
    while (size := size // shards // 2 * shards) > 0:
        yield {**fields, "train.batch_size": size}


def _cut_weights(run: AbstractRun) -> Fields:
    """What cuts the frozen weights; the batch is cut as before. {} if they are cut already."""
    sizes = run.mesh.shape
    if sizes["fsdp"] > 1:
        is_cut = run.config.mesh.weights == "sharded"
        return {} if is_cut else {"mesh.weights": "sharded"}
    parts = math.gcd(sizes["data"], _PARTS)
    if parts == 1:
        return {}
    return {"mesh.weights": "sharded", "mesh.data": sizes["data"] // parts, "mesh.fsdp": parts}


def largest_slice(config: ConfigDict, plan: Slice) -> str | None:
    """The largest slice of the family over which the global batch divides; None if none does."""
    chosen = None
    for name, devices in device_counts(plan).items():
        shards = _shards(config, devices)
        if shards and config.train.batch_size % shards == 0:
            chosen = name
    return chosen


def _shards(config: ConfigDict, devices: int) -> int | None:
    """Parts of a batch on a mesh over so many devices; None if the mesh cannot be made of them."""
    try:
        sizes = meshes.axis_sizes(config.mesh, devices)
    except UserError:
        return None
    return sizes["data"] * sizes["fsdp"]
