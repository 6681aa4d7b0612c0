"""What to change if a run does not fit: the smallest change that really compiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from uniadapter_jax import mesh as meshes
from uniadapter_jax.errors import UserError
from uniadapter_jax.planning.abstract import TRAIN, AbstractRun, build
from uniadapter_jax.planning.compilation import Program, compile_program
from uniadapter_jax.planning.topology import Slice, device_counts

_REMAT = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class Change:
    """Fields of the config that make the program fit, and the program then; None if none does."""

    fields: dict[str, str | int]
    program: Program


def find_change(run: AbstractRun, failed: Program, say: Callable[[str], None]) -> Change | None:
    """The first change with which the failed program fits; None if none does.

    For the train step: remat of products' surroundings, of whole layers, then ever half the
    batch. For evaluation: ever half its batch.
    """
    for fields in _candidates(run, failed.name):
        config = run.config.copy_and_resolve_references()
        with config.unlocked():
            config.update_from_flattened_dict(fields)
        platform = run.mesh.devices.flat[0].platform
        changed = build(config, run.backbone, run.mesh, platform)
        program = compile_program(changed, failed.name, failed.limit)
        asked = ", ".join(f"--config.{name}={value}" for name, value in fields.items())
        say(f"{failed.name} with {asked}: {'fits' if program.fits else 'does not fit'}")
        if program.fits:
            return Change(fields, program)
    return None


def _candidates(run: AbstractRun, name: str) -> Iterator[dict[str, str | int]]:
    shards = meshes.batch_shards(run.mesh)
    if name != TRAIN:
        size = meshes.round_up(run.mesh, run.config.eval.batch_size)
        while (size := size // shards // 2 * shards) > 0:
            yield {"eval.batch_size": size}
        return
    for remat in _REMAT[_REMAT.index(run.config.compute.remat) + 1 :]:
        yield {"compute.remat": remat}
    size = run.config.train.batch_size
    while (size := size // shards // 2 * shards) > 0:
        yield {"compute.remat": "full", "train.batch_size": size}


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
