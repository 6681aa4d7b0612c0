"""One training step of BLIP-base + UniAdapter, alone or beside the authors' PyTorch step.

    python benchmarks/matching_step.py [--pictures 4] [--no-momentum] ...
    python benchmarks/matching_step.py --reference CHECKOUT       # of RERV/UniAdapter; needs torch
    python benchmarks/matching_step.py --frames 8 --pictures 2 --bottleneck 128 --steps 1   # clips

The step is a run's: contrast and match with hard negatives, dropout, AdamW; by default r = 512, 4
pictures of 224 pixels and 4 texts of 35 tokens, float32, momentum with a queue of 57,600. The
reference runs in a process of its own and takes turns with ours: while one works, the other waits.
`ratio` is of seconds; `cpu_ratio`, of processor seconds, holds where others use the machine, too.

Memory: ours alone, of this process; `momentum_over_trainables` is by how much the weights on the
device grow with momentum, queue apart, over the bytes of what trains.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import argparse
import gc
import json
import pathlib
import resource
import statistics
import sys
import time
from collections.abc import Callable
from subprocess import PIPE
from typing import Any

from uniadapter_jax.common import children, signals

# What a process of the reference is started with, by this file itself.
_REFERENCE = "--be-the-reference"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--method", default="uniadapter", help="a registered name")
    parser.add_argument("--pictures", type=int, default=4, help="and as many texts")
    parser.add_argument("--frames", type=int, default=1, help="more: clips, frame-aware attention")
    parser.add_argument("--words", type=int, default=35)
    parser.add_argument("--size", type=int, default=224, help="pixels along a side")
    parser.add_argument("--bottleneck", type=int, default=512)
    parser.add_argument("--queue", type=int, default=57_600)
    parser.add_argument("--no-momentum", action="store_true")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--remat", default="dots", choices=["none", "full", "dots"])
    parser.add_argument("--warm", type=int, default=1, help="steps before those that count")
    parser.add_argument("--steps", type=int, default=5, help="steps that count")
    parser.add_argument("--reference", metavar="CHECKOUT")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument(_REFERENCE, action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


Seconds = tuple[float, float]  # on the clock, and of all threads of the process


def clocks() -> Seconds:
    return time.perf_counter(), time.process_time()


def since(start: Seconds) -> Seconds:
    wall, cpu = clocks()
    return wall - start[0], cpu - start[1]


def our_step(args: argparse.Namespace) -> tuple[Callable[[], Seconds], dict[str, Any]]:
    """(a step that returns its seconds, what is known before the first)."""
    import jax
    import numpy as np

    from uniadapter_jax.adapters.partition import partition
    from uniadapter_jax.adapters.registry import get_method
    from uniadapter_jax.backbones.blip import BLIP
    from uniadapter_jax.backbones.blip_config import MATCHING, BLIPConfig
    from uniadapter_jax.common.randomness import generator
    from uniadapter_jax.config import base_config
    from uniadapter_jax.parallel import mesh as meshes
    from uniadapter_jax.tasks.base import Setting, place_state
    from uniadapter_jax.tasks.registry import get_task
    from uniadapter_jax.training.optimizers import make_optimizer
    from uniadapter_jax.training.step import init_opt_state, make_step

    sizes = {"architectures": [MATCHING], "vision_config": {"image_size": args.size}}
    blip_config = BLIPConfig.from_huggingface(sizes)
    config = base_config(args.method, "matching")
    if "bottleneck" in config.method:
        config.method.bottleneck = args.bottleneck
    config.task.queue = 0 if args.no_momentum else args.queue
    config.task.momentum = 0.0 if args.no_momentum else config.task.momentum
    config.task.frame_weights = args.frames > 1
    config.optimizer.recipe = "adamw_cosine_per_epoch"
    config.optimizer.update({"weight_decay": 0.05, "warmup": 0.0, "clip_norm": 0.0})
    model = BLIP(
        blip_config, rng=generator(0, "backbone"), dtype=args.dtype, remat=args.remat, dropout=0.1
    )
    method = get_method(args.method)
    method.attach(model, config.method, generator(0, "adapters"))
    part = partition(model, method.filter(config.method), args.dtype)
    del model
    mesh = meshes.one_device()
    setting = Setting(config.task, mesh, blip_config, args.pictures, 100)
    task = get_task("matching").make(setting)
    before = _bytes(jax.live_arrays())
    task_state = place_state(task, part.trainable, mesh)
    queue = _bytes(jax.tree.leaves(task_state.get("queue")))
    grown = _bytes(jax.live_arrays()) - before - queue
    optimizer = make_optimizer(config.optimizer, 1000, part.trainable)
    opt_state = init_opt_state(optimizer, part.trainable, mesh)
    step = make_step(task, part, optimizer, mesh, seed=0)
    batch = meshes.put_batch(random_batch(blip_config, args), mesh, args.pictures)
    state = [part.trainable, opt_state, task_state]
    start = time.perf_counter()
    compiled = step.trace(*state, part.frozen, batch, np.int32(0)).lower().compile()
    known = {
        "device": jax.devices()[0].device_kind,
        "dtype": args.dtype,
        "compile_seconds": time.perf_counter() - start,
        "temporaries_gib": compiled.memory_analysis().temp_size_in_bytes / 2**30,
        "trained": part.counts()["trained"],
        "momentum_over_trainables": grown / _bytes(jax.tree.leaves(part.trainable)),
    }
    part.trainable = None  # donated below
    gc.collect()
    done = 0

    def one() -> Seconds:
        nonlocal done
        start = clocks()
        *state[:], metrics = compiled(*state, part.frozen, batch, np.int32(done), step.given)
        known["loss"] = float(metrics["loss"])
        done += 1
        return since(start)

    return one, known


def _bytes(arrays: Any) -> int:
    return sum(array.nbytes for array in arrays)


def random_batch(config: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Noise with the shapes of a real batch."""
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (args.pictures, args.frames, args.size, args.size, 3)
    return {
        "frames": rng.integers(0, 256, shape, dtype=np.uint8),
        "frame_mask": np.ones(shape[:2], bool),
        "text": rng.integers(1000, config.dec_id, (args.pictures, args.words)).astype(np.int32),
        "item": np.arange(args.pictures, dtype=np.int32),
    }


def be_the_reference(args: argparse.Namespace) -> None:
    """Takes a step for every line of the input and answers with its seconds."""
    import dataclasses

    import torch

    sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests/golden"))
    from released_uniadapter import BASE, Released

    sizes = dataclasses.replace(BASE, image=args.size, bottleneck=args.bottleneck, queue=args.queue)
    model = Released(args.reference).retrieval(sizes, momentum=not args.no_momentum).train()
    heads = ("vision_proj.", "text_proj.", "itm_head.")
    for name, parameter in model.named_parameters():  # as their trainer has it
        own = "adapter" in name or name.startswith(heads)
        parameter.requires_grad = own and "_m" not in name
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05)
    pictures = torch.randn(args.pictures, 3, args.size, args.size)
    texts = torch.randint(1000, sizes.vocab - 2, (args.pictures, args.words))
    item = torch.arange(args.pictures)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = clocks()
        loss = sum(model(pictures, texts, 0.4, item))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(*since(start), flush=True)


class Reference:
    """The authors' step in a process of its own."""

    def __init__(self) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], _REFERENCE]
        self.running = children.started(command, stdin=PIPE, stdout=PIPE, text=True)
        self.process = self.running.__enter__()
        self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the reference's process ended; see above")
        return line

    def step(self) -> Seconds:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        wall, cpu = self._answer().split()
        return float(wall), float(cpu)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.running.__exit__(None, None, None)


def summary(name: str, steps: list[Seconds]) -> dict[str, Any]:
    wall, cpu = zip(*steps, strict=True)
    return {
        f"{name}_seconds": statistics.median(wall),
        f"{name}_seconds_min_max": [min(wall), max(wall)],
        f"{name}_cpu_seconds": statistics.median(cpu),
    }


def main() -> None:
    args = arguments()
    if args.be_the_reference:
        be_the_reference(args)
        return
    if args.reference and args.frames > 1:
        raise SystemExit("--frames: the released code has no clips; leave --reference out")
    reference = Reference() if args.reference else None
    step, known = our_step(args)
    ours, theirs = [], []
    for _ in range(args.warm + args.steps):
        ours.append(step())
        if reference:
            theirs.append(reference.step())
    ours, theirs = ours[args.warm :], theirs[args.warm :]
    report = {**known, **summary("step", ours)}
    report["peak_rss_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    if reference:
        reference.end()
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
        report |= {**summary("reference", theirs), "reference_peak_rss_gb": peak}
        for name, clock in (("ratio", 0), ("cpu_ratio", 1)):
            pairs = zip(ours, theirs, strict=True)
            report[name] = statistics.median(a[clock] / b[clock] for a, b in pairs)
    if args.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")


if __name__ == "__main__":
    signals.run(main)
