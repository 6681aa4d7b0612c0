"""One training step of CLIP + Cross-Modal Adapter against this machine's own product peak.

    python benchmarks/train_step.py [--clips 8] [--frames 12] [--words 32] [--dtype float32] ...
    python benchmarks/train_step.py --reference CHECKOUT  # of LeapLabTHU/Cross-Modal-Adapter; torch
    python benchmarks/train_step.py --backbone vit-l-14 --clips 2 --frames 8 --warm 1 --steps 1

Useful FLOPs are those of the products that the step needs (uniadapter_jax/planning/flops.py): what
remat computes again does not count. The peak is the best
median of jitted 2048^3 and 4096^3 float32 products, taken before and after every step in the same
process with the same threads, so a machine that slows down slows both. The authors' step, of
ViT-B/32 in float32 with random weights, runs in a process of its own and takes turns with ours.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import argparse
import json
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import turns

from uniadapter_jax.adapters.partition import partition
from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.backbones.clip import CLIP, CLIPConfig
from uniadapter_jax.common import signals
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.config import base_config
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.planning.abstract import TRAIN, build
from uniadapter_jax.planning.flops import useful_flops
from uniadapter_jax.planning.sizes import backbone_config
from uniadapter_jax.tasks.retrieval.task import Retrieval
from uniadapter_jax.training.optimizers import make_optimizer
from uniadapter_jax.training.step import init_opt_state, make_step

# What a process of the reference is started with, by this file itself.
_REFERENCE = "--be-the-reference"


def seconds(function, *args) -> float:  # type: ignore[no-untyped-def]
    """Wall time of one call that has been compiled before."""
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - start


class Peak:
    """Samples of the machine's float32 (or bfloat16) product rate, in FLOP/s."""

    def __init__(self, dtype: str):
        self.product = jax.jit(lambda a, b: a @ b)
        self.operands = {n: jnp.ones((n, n), dtype) for n in (2048, 4096)}
        self.rates: dict[int, list[float]] = {n: [] for n in self.operands}
        for x in self.operands.values():
            jax.block_until_ready(self.product(x, x))

    def sample(self) -> None:
        for n, x in self.operands.items():
            self.rates[n].append(2 * n**3 / seconds(self.product, x, x))

    def best(self) -> float:
        """The better of the two medians."""
        return max(statistics.median(rates) for rates in self.rates.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--method", default="cross_modal_adapter", help="a registered name")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--words", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--remat", default="none", choices=["none", "full", "dots"])
    parser.add_argument("--frame-chunks", type=int, default=0, help="0: as the config's default")
    parser.add_argument("--backbone", default="vit-b-32", help="its config.json or known name")
    parser.add_argument("--warm", type=int, default=3, help="steps before those that count")
    parser.add_argument("--steps", type=int, default=5, help="steps that count")
    parser.add_argument("--no-peak", action="store_true", help="only the step (for its memory)")
    parser.add_argument("--reference", metavar="CHECKOUT")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument(_REFERENCE, action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.be_the_reference:
        be_the_reference(args)
        return
    command = [sys.executable, __file__, *sys.argv[1:], _REFERENCE]
    reference = turns.Other(command) if args.reference else None

    config = base_config(args.method)
    config.train.batch_size = args.clips
    config.data.frames, config.data.words = args.frames, args.words
    clip_config, _ = backbone_config(config, args.backbone)
    assert isinstance(clip_config, CLIPConfig)
    method = get_method(args.method)

    model = CLIP(
        clip_config,
        rng=generator(0, "backbone"),
        dtype=args.dtype,
        remat=args.remat,
        frame_chunks=args.frame_chunks,
    )
    method.attach(model, config.method, generator(0, "adapters"))
    part = partition(model, method.filter(config.method), args.dtype)
    del model
    mesh = meshes.make_mesh(config.mesh)
    optimizer = make_optimizer(config.optimizer, 1000, part.trainable)
    trainable, opt_state = part.trainable, init_opt_state(optimizer, part.trainable, mesh)
    step = make_step(Retrieval(config.task, mesh), part, optimizer, mesh, seed=0)
    batch = meshes.put_batch(random_batch(clip_config, args), mesh, args.clips)

    start = time.perf_counter()
    state = trainable, opt_state, {}
    compiled = step.trace(*state, part.frozen, batch, np.int32(0)).lower().compile()
    compile_seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    peak = None if args.no_peak else Peak(args.dtype)
    ours, theirs, loss = [], [], 0.0

    def one() -> None:
        nonlocal trainable, opt_state, loss
        at = np.int32(len(ours))
        trainable, opt_state, _, metrics = compiled(
            trainable, opt_state, {}, part.frozen, batch, at, step.given
        )
        loss = float(metrics["loss"])

    for _ in range(args.warm + args.steps):
        if peak:
            peak.sample()
        ours.append(turns.timed(one))
        if peak:
            peak.sample()
        if reference:
            theirs.append(reference.turn())
    ours, theirs = ours[args.warm :], theirs[args.warm :]
    useful = useful_flops(build(config, clip_config, mesh, jax.default_backend()), TRAIN)
    spent = turns.summary("step", ours)
    took = spent["step_seconds"]
    report = {
        "device": jax.devices()[0].device_kind,
        "dtype": args.dtype,
        "remat": args.remat,
        "useful_tflop": useful / 1e12,
        **spent,
        "gflop_per_second": useful / took / 1e9,
        "peak_gflop_per_second": peak.best() / 1e9 if peak else None,
        "share_of_peak": useful / took / peak.best() if peak else None,
        "temporaries_gib": memory.temp_size_in_bytes / 2**30,
        "peak_rss_gb": turns.peak_bytes() / 1e9,
        "compile_seconds": compile_seconds,
        "loss": loss,
        "adapter_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(trainable)),
    }
    if reference:
        reference.end()
        report |= turns.against(ours, theirs, reference)
    if args.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")


def random_batch(config: CLIPConfig, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """A batch of noise with the shapes of a real one."""
    rng = np.random.default_rng(0)
    text = rng.integers(0, config.eos_id, (args.clips, args.words)).astype(np.int32)
    text[:, -1] = config.eos_id
    shape = (args.clips, args.frames, config.image_size, config.image_size, 3)
    return {
        "frames": rng.integers(0, 256, shape, dtype=np.uint8),
        "frame_mask": np.ones((args.clips, args.frames), bool),
        "text": text,
        "item": np.arange(args.clips, dtype=np.int32),
    }


def be_the_reference(args: argparse.Namespace) -> None:
    """Takes the authors' step when it is this process's turn."""
    import torch

    golden = pathlib.Path(__file__).parents[1] / "tests/golden"
    sys.path[:0] = [args.reference, str(golden)]
    import make_cma

    model = make_cma.random_model(make_cma.B32, bottleneck=8, shared=16)
    optimizer = make_cma.optimizer_of(model)
    sizes = args.clips, args.frames, args.words
    batch = [part[0] for part in make_cma.random_batches(make_cma.B32, 1, *sizes)]

    def step() -> None:
        make_cma.gradients(model, make_cma.similarity(model, "q_score", *batch)[-1])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    turns.answer(step, checkpoint_bytes=turns.saved_bytes({"model": model.state_dict()}))


if __name__ == "__main__":
    signals.run(main)
