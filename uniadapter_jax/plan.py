"""Checks that a run fits a TPU slice before the slice is paid for.

    python -m uniadapter_jax.plan --config=configs/msrvtt.py --topology=v5e:16x16

compiles the training step and the evaluation of that config for the slice, on any machine: no TPU,
no weights and no data are needed, only `pip install 'uniadapter_jax[tpu]'`. `--topology=cpu:8`
compiles for fake devices without it. Reports the memory, work and traffic of a chip; see
docs/scale.md. Exit status: 0 it fits, 1 it does not (the smallest change that helps is named), 2
wrong input.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from uniadapter_jax import config as configs
from uniadapter_jax.common.errors import UserError, run_app
from uniadapter_jax.data.records import carve_validation, open_records
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.parallel.progress import say
from uniadapter_jax.planning.abstract import TRAIN, build
from uniadapter_jax.planning.advice import find_change, largest_slice
from uniadapter_jax.planning.compilation import compile_program
from uniadapter_jax.planning.flops import useful_flops
from uniadapter_jax.planning.report import describe, tables
from uniadapter_jax.planning.sizes import backbone_config
from uniadapter_jax.planning.topology import Slice, open_slice
from uniadapter_jax.runs.assembly import count_steps
from uniadapter_jax.tasks.registry import get_task

SCHEMA = 1
_GIB = 2**30


def plan(
    config: ConfigDict,
    topology: str,
    *,
    batch_per_chip: int | None = None,
    backbone: str | None = None,
    hbm: int | None = None,
    train_only: bool = False,
) -> dict[str, Any]:
    """The plan of a run; `docs/scale.md` has its schema.

    Args:
      batch_per_chip: examples per chip; None: its share of `config.train.batch_size`.
      backbone: see `planning.sizes.backbone_config`.
      hbm: bytes of memory of a device, in place of the chip's.
      train_only: leaves out the programs of the evaluation.

    Raises:
      UserError: an unknown slice or backbone, a mesh that does not fit the slice, a wrong config.
    """
    config = configs.validate(config).copy_and_resolve_references()
    where = open_slice(topology)
    if batch_per_chip is not None:
        config.train.batch_size = batch_per_chip * where.chips
    sizes, source = backbone_config(config, backbone)
    mesh = meshes.make_mesh(config.mesh, where.devices)
    report = _header(config, where, mesh, source)
    if config.train.batch_size % meshes.batch_shards(mesh):
        return {**report, "fits": False, "misfit": _misfit(config, where, mesh)}
    run = build(config, sizes, mesh, where.platform)
    limit = hbm
    if limit is None and where.chip is not None:
        limit = where.chip.hbm
    programs, changes = {}, {}
    for name in run.programs[:1] if train_only and TRAIN in run.programs else run.programs:
        program = compile_program(run, name, limit)
        say(f"{name}: compiled in {program.seconds:.1f} s")
        programs[name] = describe(program, where, useful_flops(run, name))
        if not program.fits:
            change = find_change(run, program, say)
            changes[name] = change and {
                "fields": change.fields,
                "needed_bytes": change.program.needed,
                "program": describe(change.program, where, useful_flops(change.run, name)),
            }
    report |= {
        "fits": all(program["fits"] for program in programs.values()),
        "programs": programs,
        "changes": changes,
    }
    estimate = programs.get(TRAIN, {}).get("estimate")
    if estimate:
        report["estimate"] = _rates(config, estimate["seconds"])
    return report


def _header(config: ConfigDict, where: Slice, mesh: Mesh, source: str) -> dict[str, Any]:
    batch = config.train.batch_size
    return {
        "schema": SCHEMA,
        "name": config.name,
        "method": config.method.name,
        "backbone": source,
        "slice": {"name": where.name, "chips": where.chips, "devices": len(where.devices)},
        "mesh": dict(mesh.shape),
        "dtype": config.compute.dtype,
        "remat": config.compute.remat,
        "batch": {
            "global": batch,
            "per_chip": batch / where.chips,
            "unit": _unit(config),
            "frames": config.data.frames,
            "words": config.data.words,
        },
    }


def _unit(config: ConfigDict) -> str:
    """The unit of a batch: pictures, clips, ..."""
    unit = get_task(config.task.name).samples.unit
    return "pictures" if unit == "clips" and config.data.frames == 1 else unit


def _misfit(config: ConfigDict, where: Slice, mesh: Mesh) -> dict[str, Any]:
    batch = config.train.batch_size
    smallest = meshes.round_up(mesh, batch)
    largest = largest_slice(config, where)
    return {
        "smallest_batch": smallest,
        "largest_slice": largest,
        "message": (
            f"config.train.batch_size={batch} does not divide over the {meshes.batch_shards(mesh)} "
            f"parts of the mesh {dict(mesh.shape)}. The next batch that does is {smallest}; "
            + (
                f"the largest slice that {batch} divides over is {largest}"
                if largest
                else f"{batch} divides over no slice of {where.family}"
            )
        ),
    }


def _rates(config: ConfigDict, seconds: float) -> dict[str, Any]:
    """Examples per second, and seconds of an epoch if the records exist."""
    batch = config.train.batch_size
    rates: dict[str, Any] = {"step_seconds": seconds, "examples_per_second": batch / seconds}
    if not os.path.isdir(config.data.records):
        return rates
    records = open_records(config.data.records, config.data.train_split)
    if config.data.val:
        records, _ = carve_validation(records, config.data.val)
    steps = count_steps(config, get_task(config.task.name), records)
    return {**rates, "samples": steps * batch, "epoch_seconds": steps * seconds}


def _define_flags() -> dict[str, flags.FlagHolder]:
    """Defines the flags when the command runs, not on import: `main` has a --config as well."""
    return {
        "config": config_flags.DEFINE_config_file(
            "config", None, "The experiment, configs/NAME.py[:ARGS]."
        ),
        "topology": flags.DEFINE_string(
            "topology", None, "The slice, such as v5e:16x16, or cpu:N."
        ),
        "batch": flags.DEFINE_integer(
            "batch-per-chip", None, "Batch of a chip; default: config.train.batch_size for all.", 1
        ),
        "backbone": flags.DEFINE_string(
            "backbone-config", None, "config.json or known name (vit-b-32, ...) of the backbone."
        ),
        "hbm": flags.DEFINE_float(
            "hbm-gib", None, "Memory of a device in GiB; default: the chip's.", 0.0
        ),
        "train": flags.DEFINE_boolean(
            "train-only", False, "The training step alone, without the evaluation."
        ),
        "json": flags.DEFINE_boolean("json", False, "One JSON object instead of tables."),
    }


def main() -> None:
    """Runs the command."""
    holders = _define_flags()

    def command(argv: Sequence[str]) -> int:
        del argv
        config, topology, hbm = (holders[name].value for name in ("config", "topology", "hbm"))
        if config is None or not topology:
            missing = "--config" if config is None else "--topology"
            raise UserError(
                f"{missing} is missing; for example --config=configs/msrvtt.py --topology=v5e:16x16"
            )
        report = plan(
            config,
            topology,
            batch_per_chip=holders["batch"].value,
            backbone=holders["backbone"].value,
            hbm=None if hbm is None else int(hbm * _GIB),
            train_only=holders["train"].value,
        )
        print(json.dumps(report) if holders["json"].value else "\n".join(tables(report)))
        return 0 if report["fits"] else 1

    run_app(command)


if __name__ == "__main__":
    main()
