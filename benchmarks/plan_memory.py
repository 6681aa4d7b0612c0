"""What `plan --topology=cpu:N` says of memory, and what the training step then really takes.

    python benchmarks/plan_memory.py --config=configs/msrvtt.py --backbone-config=vit-b-32 \\
        [--devices=8] [--config.data.frames=4 ...]

The step is compiled from shapes, given noise, and run once on N fake devices of this machine, which
share its memory. Linux only: peaks are the kernel's (VmHWM), counted from just before anything is
placed. Prints `predicted_bytes` (of one device: arguments, what it returns in room of its own, and
temporaries; times N), `measured_bytes`, and their `ratio`.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import gc
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from uniadapter_jax import config as configs
from uniadapter_jax.common.errors import run_app
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.planning.abstract import TRAIN, build
from uniadapter_jax.planning.sizes import backbone_config
from uniadapter_jax.planning.topology import open_slice

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, configs/NAME.py[:ARGS].")
_BACKBONE = flags.DEFINE_string("backbone-config", None, "config.json or known name.")
_DEVICES = flags.DEFINE_integer("devices", 8, "How many fake devices.", 1)


def resident(peak: bool = False) -> int:
    """Bytes of memory of this process, now or at most."""
    name = "VmHWM" if peak else "VmRSS"
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def noise(like: jax.ShapeDtypeStruct, rng: np.random.Generator) -> jax.Array:
    """An array of that shape, type and place, made part by part."""

    def part(index: tuple[slice, ...]) -> np.ndarray:
        shape = [len(range(*s.indices(n))) for s, n in zip(index, like.shape, strict=True)]
        if np.issubdtype(like.dtype, np.floating):
            return 0.02 * rng.standard_normal(shape, like.dtype)
        return np.ones(shape, like.dtype)

    assert like.sharding is not None
    return jax.make_array_from_callback(like.shape, like.sharding, part)


def measure() -> dict[str, Any]:
    """Compiles, places, runs."""
    config = configs.validate(_CONFIG.value).copy_and_resolve_references()
    where = open_slice(f"cpu:{_DEVICES.value}")
    sizes, _ = backbone_config(config, _BACKBONE.value)
    run = build(config, sizes, meshes.make_mesh(config.mesh, where.devices), where.platform)
    compiled = run.lower(TRAIN).compile()
    stats = compiled.memory_analysis()
    assert stats is not None
    predicted = stats.argument_size_in_bytes + stats.temp_size_in_bytes
    predicted += stats.output_size_in_bytes - stats.alias_size_in_bytes
    gc.collect()
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    rng = np.random.default_rng(0)
    given = [jax.tree.map(lambda x: noise(x, rng), part) for part in run.arguments(TRAIN).values()]
    placed = resident() - before
    jax.block_until_ready(compiled(*given, np.int32(0), run.step.given))
    measured, predicted = resident(peak=True) - before, predicted * len(where.devices)
    return {
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "ratio": measured / predicted,
        "arguments_bytes": stats.argument_size_in_bytes * len(where.devices),
        "placed_bytes": placed,
    }


def main(argv: Sequence[str]) -> int:
    del argv
    print(json.dumps(measure()))
    return 0


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    run_app(main)
