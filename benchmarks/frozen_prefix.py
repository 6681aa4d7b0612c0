"""What frozen layers cost where they are computed once: steps of CLIP, taken in turn.

    python benchmarks/frozen_prefix.py [--clips 8] [--frames 12] [--words 32] [--rounds 3] ...

Every round takes one step of each form, in turn. A form's time is the median of its processor time
(all threads, user), so that other work on the machine counts little; ratios are to the plain step
of the Cross-Modal Adapter. "cached" steps are given random activations in place of frames and
words, which a cache maps from disk. Temporaries are by the compiler.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import argparse
import json
import os
import statistics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uniadapter_jax.adapters.partition import partition
from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.backbones.clip import CLIP, CLIPConfig
from uniadapter_jax.common import signals
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.config import base_config
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.planning.sizes import backbone_config
from uniadapter_jax.tasks.retrieval.task import Retrieval
from uniadapter_jax.training.optimizers import make_optimizer
from uniadapter_jax.training.step import init_opt_state, make_step


class Form(NamedTuple):
    """A way to take the step; bars are shares of the plain step, of captions a multiple."""

    method: str = "cross_modal_adapter"
    from_layer: int = 0
    cached: bool = False
    captions: int = 1
    time_bar: float | None = None
    memory_bar: float | None = None


FORMS = {
    "plain": Form(),
    "from_layer=8": Form(from_layer=8, time_bar=0.74, memory_bar=0.50),
    "from_layer=8 cached": Form(from_layer=8, cached=True, time_bar=0.38),
    "projection cached": Form("projection", cached=True, time_bar=0.03),
    "clip_adapter cached": Form("clip_adapter", cached=True, time_bar=0.03),
    "captions_per_clip=4": Form(captions=4),
}
CAPTIONS_BAR = 2.5  # times the captions a second


class Step:
    """A compiled step with its state; `take` gives the processor seconds of one."""

    def __init__(self, form: Form, clip_config: CLIPConfig, args: argparse.Namespace):
        config, method = base_config(form.method), get_method(form.method)
        if form.from_layer:
            config.method.from_layer = form.from_layer
        model = CLIP(clip_config, rng=generator(0, "backbone"))
        method.attach(model, config.method, generator(0, "adapters"))
        part = partition(model, method.filter(config.method))
        mesh = meshes.make_mesh(config.mesh)
        optimizer = make_optimizer(config.optimizer, 1000, part.trainable)
        self.state = part.trainable, init_opt_state(optimizer, part.trainable, mesh), {}
        self.frozen = part.frozen
        self.batch = meshes.put_batch(random_batch(form, part, clip_config, args), mesh, args.clips)
        step = make_step(Retrieval(config.task, mesh), part, optimizer, mesh, seed=0)
        given = *self.state, self.frozen, self.batch, np.int32(0)
        self.given, self.compiled = step.given, step.trace(*given).lower().compile()
        self.temporaries = self.compiled.memory_analysis().temp_size_in_bytes

    def take(self, number: int) -> float:
        before = os.times().user
        *state, metrics = self.compiled(
            *self.state, self.frozen, self.batch, np.int32(number), self.given
        )
        self.state = tuple(state)
        assert np.isfinite(float(metrics["loss"]))
        return os.times().user - before


def random_batch(
    form: Form, part: Any, config: CLIPConfig, args: argparse.Namespace
) -> dict[str, np.ndarray]:
    """A batch of noise with the shapes of a real one."""
    rng = np.random.default_rng(0)
    several = (form.captions,) if form.captions > 1 else ()
    text = rng.integers(0, config.eos_id, (args.clips, *several, args.words)).astype(np.int32)
    text[..., -1] = config.eos_id
    shape = (args.clips, args.frames, config.image_size, config.image_size, 3)
    frames = rng.integers(0, 256, shape, dtype=np.uint8)
    batch = {
        "frame_mask": np.ones((args.clips, args.frames), bool),
        "text": text,
        "item": np.arange(args.clips, dtype=np.int32),
    }
    if not form.cached:
        return {**batch, "frames": frames}

    def known(frames: jax.Array, text: jax.Array) -> dict[str, jax.Array]:
        model = part.merge(part.trainable, part.frozen)
        return {"known_frames": model.known_frames(frames), "known_text": model.known_text(text)}

    shapes = jax.eval_shape(known, jnp.asarray(frames), jnp.asarray(text))
    noise = {n: rng.standard_normal(x.shape, np.float32) for n, x in shapes.items()}
    return {**batch, **noise}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--words", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="that count, after one that does not")
    parser.add_argument("--only", help="names of forms beside plain, separated by commas")
    parser.add_argument("--backbone", default="vit-b-32", help="its config.json or known name")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    args = parser.parse_args()
    clip_config, _ = backbone_config(base_config(), args.backbone)
    assert isinstance(clip_config, CLIPConfig)
    names = list(FORMS) if args.only is None else ["plain", *args.only.split(",")]
    steps = {name: Step(FORMS[name], clip_config, args) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(args.rounds + 1):
        for name, step in steps.items():
            took = step.take(number)
            if number:
                seconds[name].append(took)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [row(name, medians, steps) for name in names]
    if args.json:
        print(json.dumps(rows))
        return
    print("| form | user s | share | bar | temporaries GiB | share | bar |")
    print("|---|---|---|---|---|---|---|")
    for r in rows:
        print("| " + " | ".join("" if x is None else str(x) for x in r.values()) + " |")
    if "captions_per_clip=4" in medians:
        times = 4 * medians["plain"] / medians["captions_per_clip=4"]
        print(f"\ncaptions a second: {times:.2f} times the plain step's (bar {CAPTIONS_BAR})")


def row(name: str, medians: dict[str, float], steps: dict[str, Step]) -> dict[str, Any]:
    """A line of the table."""
    form, plain = FORMS[name], steps["plain"]
    return {
        "form": name,
        "seconds": round(medians[name], 2),
        "share": round(medians[name] / medians["plain"], 3),
        "time_bar": form.time_bar,
        "temporaries_gib": round(steps[name].temporaries / 2**30, 3),
        "memory_share": round(steps[name].temporaries / plain.temporaries, 3),
        "memory_bar": form.memory_bar,
    }


if __name__ == "__main__":
    signals.run(main)
