"""A complete run in a minute or two: clips and texts in, a table and a picture out.

    python -m uniadapter_jax.demo [--workdir=runs/demo] [--seed=0] [--method=cross_modal_adapter]
    python -m uniadapter_jax.demo --backbone=blip [--method=uniadapter]

Draws clips of coloured shapes (real mp4 files), prepares them, measures how well the tiny CLIP or
BLIP that ships with the package finds them without training, adapts it by `--method`, and measures
again; with BLIP the best of the first stage are re-ranked. A user's own data takes the same steps:
`prepare.prepare`, `run.run`. Run again, it skips finished steps; another seed, method or backbone
uses the same clips.

The same steps by hand, once the clips exist (configs/demo.py is `get_config` below):

    python -m uniadapter_jax.prepare --config=configs/demo.py --input=runs/demo/clips
    python -m uniadapter_jax.main --config=configs/demo.py:method=lora --workdir=runs/demo/lora
    python -m uniadapter_jax.main --config=configs/demo.py:backbone=blip --workdir=runs/demo/blip
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from absl import flags
from ml_collections import ConfigDict

from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.common.cores import usable_cores
from uniadapter_jax.common.errors import UserError, run_app
from uniadapter_jax.config import base_config, parse_argument
from uniadapter_jax.data.preparation import toy
from uniadapter_jax.data.preparation.clips import PrepareSettings
from uniadapter_jax.data.sources.manifest import json_lines
from uniadapter_jax.inference import retrieved
from uniadapter_jax.parallel import launch
from uniadapter_jax.parallel.preemption import Preempted, end
from uniadapter_jax.parallel.progress import Progress, duration, say
from uniadapter_jax.prepare import prepare
from uniadapter_jax.runs.run import run
from uniadapter_jax.runs.workdir import holding

ASSETS = pathlib.Path(__file__).parent / "assets"
WORKDIR = "runs/demo"
# The method of the paper that used the backbone.
METHOD = {"clip": "cross_modal_adapter", "blip": "uniadapter"}
# Peak learning rates. At the rate for a few new parameters, full fine-tuning would forget.
LR, LR_FULL = 8e-3, 7e-4

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Size:
    """The numbers of clips in the two splits, and of training steps."""

    train: int = 600
    test: int = 160
    steps: int = 350


def get_config(argument: str | None = None) -> ConfigDict:
    """The demo's config; `argument` may say method=NAME and backbone=clip or blip."""
    chosen = parse_argument(argument, method="", backbone="clip")
    backbone = chosen["backbone"]
    if backbone not in METHOD:
        raise UserError(f"backbone={backbone}: choose one of {', '.join(METHOD)}")
    method = chosen["method"] or METHOD[backbone]
    config = base_config(method, "retrieval" if backbone == "clip" else "matching")
    config.name = f"demo-{backbone}-{method}"
    config.backbone = str(ASSETS / f"tiny_{backbone}")
    if backbone == "clip":
        # A text describes all frames alike, but the raw features of so small a CLIP are too long
        # for q_score's temperature: its softmax would pick one frame.
        config.task.similarity = "mean_pool_unit"
    else:
        config.task.momentum, config.task.queue = 0.99, 320
        config.task.frame_weights = True
        config.task.rerank_k = 24
    config.data.records = f"{WORKDIR}/records"
    config.data.frames = toy.SEGMENTS
    config.data.words = 20
    config.data.captions = "random"
    config.data.prepare.short_side = toy.PICTURE_SIDE
    config.optimizer.recipe = "adamw_warmup_cosine"
    config.optimizer.lr = LR_FULL if get_method(method).trains_backbone else LR
    config.optimizer.weight_decay = 0.05
    config.train.batch_size = 32
    config.train.steps = Size.steps
    config.train.checkpoint_every = 50
    if method in ("cross_modal_adapter", "uniadapter"):
        config.method.bottleneck = 16
    if method == "cross_modal_adapter":
        config.method.init_std = 0.03
    return config


def demo(
    workdir: str | os.PathLike,
    method: str = "",
    seed: int = 0,
    size: Size = Size(),
    backbone: str = "clip",
) -> dict[str, Any]:
    """Runs the demo; returns {"before", "after": results, "seconds": {phase: seconds}, "picture"}.

    Raises:
      UserError: `workdir` holds clips of another size, or another command works there.
    """
    workdir = pathlib.Path(workdir).absolute()
    method = method or METHOD[backbone]
    before, after = (
        sized_config(workdir, name, seed, size, backbone) for name in ("zero_shot", method)
    )
    mark = "" if backbone == "clip" else f"{backbone}-"
    seconds: dict[str, float] = {}

    def phase(name: str, work: Callable[[], T]) -> T:
        say(f"\n== {name}")
        began = time.monotonic()
        done = work()
        seconds[name] = time.monotonic() - began
        return done

    place = workdir / f"{mark}{method}-seed{seed}"
    picture = place / "retrieved.png"
    with holding(workdir, "the demo"):
        phase("draw clips", lambda: make_clips(workdir / "clips", size))
        phase("prepare records", lambda: _prepare(after, workdir / "clips"))
        zero_shot = phase("evaluate zero-shot", lambda: run(before, workdir / f"{mark}zero_shot"))
        adapted = phase(f"adapt and evaluate: {method}", lambda: run(after, place))
        with holding(place, "the demo"):
            phase("draw what was retrieved", lambda: draw_retrieved(after, place, picture))
    return {"before": zero_shot, "after": adapted, "seconds": seconds, "picture": str(picture)}


def sized_config(
    workdir: pathlib.Path, method: str, seed: int, size: Size, backbone: str = "clip"
) -> ConfigDict:
    """`get_config` with the flags' values."""
    config = get_config(f"method={method},backbone={backbone}")
    config.seed = seed
    config.data.records = str(workdir / "records")
    config.train.steps = size.steps
    return config


def make_clips(directory: pathlib.Path, size: Size) -> None:
    """Draws the clips, unless they exist."""
    manifest = directory / "manifest.jsonl"
    if manifest.is_file():
        lines = list(json_lines(str(manifest)))
        counts = Counter(line["split"] for _, line in lines)
        if (counts["train"], counts["test"]) != (size.train, size.test):
            raise UserError(
                f"{directory} holds {counts['train']} + {counts['test']} clips, not {size.train} + "
                f"{size.test}; choose another --workdir"
            )
        say(f"{len(lines)} clips exist already")
        return
    progress = Progress("drawing", size.train + size.test, "clips", every=5.0)
    for _ in toy.write_clips(str(directory), size.train, size.test):
        progress.advance(1)


def _prepare(config: ConfigDict, clips: pathlib.Path) -> None:
    settings = PrepareSettings.from_config(config.data.prepare)
    prepare(settings, str(clips), config.data.records, workers=usable_cores(), config=config)


def draw_retrieved(config: ConfigDict, place: pathlib.Path, picture: pathlib.Path) -> None:
    """Draws the best clips of some test texts by the model that `run` left in `place`."""
    shown = f"{config.method.name}: the best {retrieved.CLIPS} clips for a text"
    retrieved.draw(config, place, None, shown).save(picture)


def table(outcome: dict[str, Any]) -> str:
    """Both evaluations as a table, the trained parameters, and the seconds of each phase."""
    ways = (("t2v", "text finds clip"), ("v2t", "clip finds text"))
    names = list(outcome["after"]["metrics"]["t2v"])
    head = f"{'':16s}{'':>17s}" + "".join(f"{name:>8s}" for name in names)
    lines = [head]
    for label, key in (("zero-shot", "before"), (outcome["after"]["method"], "after")):
        for way, words in ways:
            values = outcome[key]["metrics"][way]
            cells = "".join(f"{values[name]:8.1f}" for name in names)
            lines.append(f"{label:20s} {words:15s}{cells}")
    parameters = outcome["after"]["parameters"]
    clips = outcome["after"]["clips"]
    share = f"{parameters['trained']:,} of {parameters['total']:,} parameters trained"
    lines += [
        "",
        f"{share} ({parameters['percent']:.2f} %)",
        f"{clips} test clips, a text for each; by chance R@1 is {100 / clips:.1f}",
        "seconds: " + ", ".join(f"{name} {took:.0f}" for name, took in outcome["seconds"].items()),
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs the command."""
    size = Size()
    workdir = flags.DEFINE_string("workdir", WORKDIR, "Where everything goes.")
    backbone = flags.DEFINE_enum("backbone", "clip", list(METHOD), "What to adapt.")
    method = flags.DEFINE_string("method", "", "How to adapt; default: the backbone's own paper's.")
    seed = flags.DEFINE_integer("seed", 0, "Draws the adapter's start and the order of the clips.")
    train = flags.DEFINE_integer("train-clips", size.train, "Clips to train on.", 1)
    test = flags.DEFINE_integer("test-clips", size.test, "Clips to test on.", 1)
    steps = flags.DEFINE_integer("steps", size.steps, "Training steps.", 1)

    def command(argv: Sequence[str]) -> int:
        del argv
        launch.use_compile_cache()
        began = time.monotonic()
        chosen = Size(train.value, test.value, steps.value)
        try:
            outcome = demo(workdir.value, method.value, seed.value, chosen, backbone.value)
        except Preempted as stopped:
            return end(stopped)
        print(f"\n{table(outcome)}")
        place = os.path.dirname(outcome["picture"])
        print(f"\n{duration(time.monotonic() - began)} in all. Look at {outcome['picture']}")
        print(f"Clips, records and runs are in {workdir.value}; the result is {place}/result.json")
        return 0

    run_app(command)


if __name__ == "__main__":
    main()
