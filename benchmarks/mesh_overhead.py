"""What a mesh of one device costs: the training step under it against the step without any mesh.

    python benchmarks/mesh_overhead.py [--pairs 30] [--clips 16] [--loss dense] [--backbone FILE]

Both are one jit of the same function; one gets arrays placed on the mesh and returns such, the
other knows no sharding. Steps alternate, so a machine that slows down slows both, and the order
within a pair alternates, too. Prints the median ratio of times; fails if the program under the mesh
has a collective.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from uniadapter_jax.adapters.partition import Partition, partition
from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.backbones.clip import CLIP, CLIPConfig
from uniadapter_jax.common import signals
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.common.types import Array, PyTree
from uniadapter_jax.config import base_config
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.planning.hlo import Module
from uniadapter_jax.planning.traffic import collectives
from uniadapter_jax.tasks.retrieval.task import Retrieval
from uniadapter_jax.training.optimizers import make_optimizer
from uniadapter_jax.training.step import Given, init_opt_state, make_step, pure_step

# Small, so that what does not belong to the products shows.
_TOWER = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
_SMALL = {
    "model_type": "clip",
    "projection_dim": 128,
    "vision_config": {**_TOWER, "image_size": 64, "patch_size": 16},
    "text_config": {**_TOWER, "vocab_size": 1000, "eos_token_id": 999},
}


class Side:
    """A compiled step and the state that it hands on."""

    def __init__(
        self,
        step: Callable,
        state: tuple[PyTree, ...],
        frozen: PyTree,
        batch: PyTree,
        *given: Given,
    ):
        self.step, self.given = step, given
        self.state, self.rest = state, (frozen, batch)
        self.run(0)  # compiles

    def run(self, number: int) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        *state, metrics = self.step(*self.state, *self.rest, np.int32(number), *self.given)
        jax.block_until_ready((state, metrics))
        self.state = tuple(state)
        self.loss = float(metrics["loss"])
        return time.perf_counter() - start


def sides(part: Partition, config: ConfigDict, batch: dict[str, np.ndarray]) -> tuple[Side, Side]:
    """The step under a mesh of one device, and the step without."""
    mesh = meshes.one_device()
    optimizer = make_optimizer(config.optimizer, 1000, part.trainable)
    frozen, trainable = (meshes.put_replicated(x, mesh) for x in (part.frozen, part.trainable))
    meshed = Side(
        make_step(Retrieval(config.task, mesh), part, optimizer, mesh, seed=0),
        (trainable, init_opt_state(optimizer, part.trainable, mesh), {}),
        frozen,
        meshes.put_batch(batch, mesh, len(batch["item"])),
    )
    plain_task = Retrieval(config.task, None)
    trainable, frozen = jax.device_put(jax.device_get((part.trainable, part.frozen)))
    plain = Side(
        jax.jit(pure_step(plain_task, part, optimizer, None), donate_argnums=(0, 1, 2)),
        (trainable, jax.jit(optimizer.init)(trainable), {}),
        frozen,
        jax.device_put(batch),
        Given.of(0),
    )
    return meshed, plain


def random_batch(config: CLIPConfig, clips: int, frames: int, words: int) -> dict[str, Array]:
    """A batch of noise with the shapes of a real one."""
    rng = np.random.default_rng(0)
    text = rng.integers(0, config.eos_id, (clips, words)).astype(np.int32)
    text[:, -1] = config.eos_id
    shape = (clips, frames, config.image_size, config.image_size, 3)
    return {
        "frames": rng.integers(0, 256, shape, dtype=np.uint8),
        "frame_mask": np.ones((clips, frames), bool),
        "text": text,
        "item": np.arange(clips, dtype=np.int32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--method", default="cross_modal_adapter", help="a registered name")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--words", type=int, default=16)
    parser.add_argument("--loss", default="dense", choices=["dense", "ring"])
    parser.add_argument("--backbone", help="config.json of a CLIP; default: a small one")
    args = parser.parse_args()

    config = base_config(args.method)
    config.task.loss = args.loss
    source = json.loads(pathlib.Path(args.backbone).read_text()) if args.backbone else _SMALL
    clip = CLIPConfig.from_huggingface(source)
    model = CLIP(clip, rng=generator(0, "backbone"))
    method = get_method(args.method)
    method.attach(model, config.method, generator(0, "adapters"))
    part = partition(model, method.filter(config.method))
    meshed, plain = sides(part, config, random_batch(clip, args.clips, args.frames, args.words))

    found = collectives(Module(meshed.compiled.as_text()), 1)
    if found or any(name in meshed.compiled.as_text() for name in ("all-reduce", "all-gather")):
        raise SystemExit(f"the program of one device has collectives: {found}")
    times: dict[str, list[float]] = {"meshed": [], "plain": []}
    for number in range(args.pairs + 2):
        order = [("meshed", meshed), ("plain", plain)]
        for name, side in order if number % 2 else order[::-1]:
            times[name].append(side.run(number))
    assert meshed.loss == plain.loss, (meshed.loss, plain.loss)
    pairs = list(zip(times["meshed"], times["plain"], strict=True))[2:]  # two to warm up
    report = {
        "pairs": len(pairs),
        "median_ratio": statistics.median(a / b for a, b in pairs),
        "meshed_seconds": statistics.median(a for a, _ in pairs),
        "plain_seconds": statistics.median(b for _, b in pairs),
        "loss": meshed.loss,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    signals.run(main)
