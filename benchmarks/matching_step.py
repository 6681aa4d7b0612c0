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
import sys
import time
from collections.abc import Callable
from typing import Any

import turns

from uniadapter_jax.common import signals

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


def our_step(args: argparse.Namespace) -> tuple[Callable[[], None], dict[str, Any]]:
    """(a step, what is known before the first)."""
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
        "adapter_bytes": _bytes(jax.tree.leaves(part.trainable)),
        "momentum_over_trainables": grown / _bytes(jax.tree.leaves(part.trainable)),
    }
    part.trainable = None  # donated below
    gc.collect()
    done = 0

    def one() -> None:
        nonlocal done
        *state[:], metrics = compiled(*state, part.frozen, batch, np.int32(done), step.given)
        known["loss"] = float(metrics["loss"])
        done += 1

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
    """Takes the authors' step when it is this process's turn."""
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

    def step() -> None:
        loss = sum(model(pictures, texts, 0.4, item))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    turns.answer(step, checkpoint_bytes=turns.saved_bytes(saved))


def main() -> None:
    args = arguments()
    if args.be_the_reference:
        be_the_reference(args)
        return
    if args.reference and args.frames > 1:
        raise SystemExit("--frames: the released code has no clips; leave --reference out")
    command = [sys.executable, __file__, *sys.argv[1:], _REFERENCE]
    reference = turns.Other(command) if args.reference else None
    step, known = our_step(args)
    ours, theirs = [], []
    for _ in range(args.warm + args.steps):
        ours.append(turns.timed(step))
        if reference:
            theirs.append(reference.turn())
    ours, theirs = ours[args.warm :], theirs[args.warm :]
    report = {**known, **turns.summary("step", ours), "peak_rss_gb": turns.peak_bytes() / 1e9}
    if reference:
        reference.end()
        report |= turns.against(ours, theirs, reference)
    if args.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")


if __name__ == "__main__":
    signals.run(main)
