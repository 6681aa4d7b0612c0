"""What the processes of a grid do: one run each, and what it costs; see `worker`."""

from __future__ import annotations

import pathlib
import resource
import tempfile
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from uniadapter_jax import config as configs
from uniadapter_jax.adapters.partition import flat_names
from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.benchmark.grid import Fields, Unit, assign
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.parallel import launch
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.planning.abstract import TRAIN, AbstractRun, build
from uniadapter_jax.planning.compilation import compile_program
from uniadapter_jax.planning.flops import useful_flops
from uniadapter_jax.planning.sizes import backbone_config
from uniadapter_jax.runs.loop import Diverged
from uniadapter_jax.runs.run import run
from uniadapter_jax.tasks.retrieval.evaluator import selection_value
from uniadapter_jax.weights.adapter_directory import TENSOR_FILE, AdapterFiles, write_adapter

_HIGHEST = 2**16  # of the option that a budget sets


def try_candidate(unit: Unit, candidate: Fields, workdir: str) -> dict[str, Any]:
    """Trains a candidate with the first seed: {"value": on validation data, "error": ""}.

    The value is None for one that diverges, which is a result: it is not chosen. Whatever else ends
    a run says nothing about the candidate.

    Raises:
      UserError: as `run`, or nothing validates.
    """
    config = unit.config(candidate, unit.seeds[0])
    config.eval.split = "val"
    if configs.validate(config).selection != "val":
        raise UserError(
            f"{unit.file}: trials are chosen on validation data, and the config has none; set "
            "data.val_split or data.val, and leave selection at auto"
        )
    launch.use_compile_cache()
    try:
        result = run(config, workdir)
    except Diverged as error:
        return {"value": None, "error": str(error)}
    return {"value": selection_value(result, config.selection_metric), "error": ""}


def train(unit: Unit, chosen: Fields, seed: int, workdir: str) -> int:
    """Trains and tests, as `main` does; returns the peak memory in bytes. Raises as `run`."""
    launch.use_compile_cache()
    run(unit.config(chosen, seed), workdir)
    return peak_memory()


def costs(unit: Unit, chosen: Fields) -> dict[str, int | None]:
    """What the compiled training step takes, and the bytes of the adapter's file.

    {"step_flops": executed, "step_useful_flops": see `planning.flops`, "step_bytes": of memory
    traffic, an estimate, "step_memory_bytes", "adapter_bytes"}; None where nothing trains.
    """
    launch.use_compile_cache()
    config = configs.validate(unit.config(chosen, unit.seeds[0])).copy_and_resolve_references()
    names = ("step_flops", "step_useful_flops", "step_bytes", "step_memory_bytes", "adapter_bytes")
    shapes = shapes_of(config)
    if TRAIN not in shapes.programs:
        return dict.fromkeys(names)
    program = compile_program(shapes, TRAIN, None)
    assert program.work is not None and program.memory is not None
    values = (
        program.work.flops,
        useful_flops(shapes, TRAIN),
        program.work.hbm_bytes,
        program.memory.total,
        _adapter_bytes(config, shapes),
    )
    return dict(zip(names, values, strict=True))


def size_within(unit: Unit) -> int:
    """The largest value of the unit's size with which at most its budget of parameters trains.

    Raises:
      UserError: the smallest has more.
    """
    assert unit.budget is not None

    def trained(value: int) -> int:
        config = unit.config((), unit.seeds[0])
        assign(config, f"{unit.size}={value}")
        return shapes_of(configs.validate(config)).partition.counts()["trained"]

    if trained(1) > unit.budget:
        raise UserError(f"{unit.size}=1 trains {trained(1):,} parameters, over {unit.budget:,}")
    low, high = 1, 2
    while high < _HIGHEST and trained(high) <= unit.budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if trained(middle) <= unit.budget else (low, middle)
    return low


def peak_memory() -> int:
    """Bytes that this process, or its first accelerator, has held at most."""
    on_device = jax.local_devices()[0].memory_stats() or {}
    return int(
        on_device.get("peak_bytes_in_use")
        or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )


def shapes_of(config: ConfigDict) -> AbstractRun:
    """The run as shapes, on this machine's devices."""
    sizes, _ = backbone_config(config, None)
    platform = jax.devices()[0].platform
    return build(config, sizes, meshes.make_mesh(config.mesh), platform)


def _adapter_bytes(config: ConfigDict, shapes: AbstractRun) -> int:
    """Bytes of the file of an exported adapter; of a trained backbone, those of its numbers."""
    if get_method(config.method.name).trains_backbone:
        return 4 * shapes.partition.counts()["trained"]
    trained = flat_names(shapes.partition.trainable)
    tensors = {name: np.zeros(leaf.shape, np.float32) for name, leaf in trained.items()}
    options = {name: value for name, value in config.method.items() if name != "name"}
    adapter = AdapterFiles(config.method.name, options, tensors, fingerprint="0" * 64)
    with tempfile.TemporaryDirectory() as scratch:
        write_adapter(pathlib.Path(scratch), adapter)
        return (pathlib.Path(scratch) / TENSOR_FILE).stat().st_size
