"""Whether batches are made while steps run: wall time per step against the longer of the two.

    python benchmarks/overlap.py                  # a core for the loader, a core for the step

A CLIP of random weights trains on videos that it writes itself. A worker process decodes on one
core, the step runs on another. The towers get as many layers as make a step as long as the making
of a batch. Then three things take turns: the loader alone, the loop on one batch that is there
already, and the loop as it is. The last should take as long as the longer of the first two.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import argparse
import itertools
import json
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

WIDTH, WORDS, VOCABULARY, BAR = 192, 16, 520, 1.15
PREFETCH_MB = 32  # two batches of the default size; more would hide for long what is too slow
WARM = 50  # steps, or batches: those that were made while the step was compiled are used up


def clip_config(layers: int) -> dict[str, Any]:
    """A CLIP of 224 pixels in patches of 32, and a text tower of one layer."""
    common = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 3}
    common |= {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    vision = {"num_hidden_layers": layers, "image_size": 224, "patch_size": 32}
    words = {"max_position_embeddings": WORDS, "vocab_size": VOCABULARY}
    words["eos_token_id"] = VOCABULARY - 1
    return {
        "model_type": "clip",
        "projection_dim": 128,
        "vision_config": common | vision,
        "text_config": common | words | {"num_hidden_layers": 1},
    }


def make_records(root: pathlib.Path, clips: int, frames: int) -> pathlib.Path:
    """Clips of noise like a photograph, with a tokenizer."""
    import av
    import numpy as np
    from PIL import Image

    from uniadapter_jax.data.preparation.clips import PrepareSettings
    from uniadapter_jax.prepare import prepare

    rng, lines = np.random.default_rng(0), []
    for c in range(clips):
        coarse = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
        scene = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
        with av.open(str(root / f"{c}.mp4"), "w") as file:
            stream = file.add_stream("libx264", rate=1, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
            for _ in range(frames):
                file.mux(stream.encode(av.VideoFrame.from_image(scene)))
            file.mux(stream.encode())
        line = {"path": f"{c}.mp4", "captions": [f"clip number {c} of {clips} clips"]}
        lines.append(json.dumps(line | {"id": f"{c}"}))
        lines.append(json.dumps(line | {"id": f"test-{c}", "split": "test"}))
    (root / "manifest.jsonl").write_text("\n".join(lines))
    settings = PrepareSettings("manifest", "fps", 1.0, frames, 480, 95, 0.0)
    prepare(
        settings, str(root / "manifest.jsonl"), str(root / "records"), tokenizer_size=VOCABULARY
    )
    return root / "records"


def experiment(root: pathlib.Path, layers: int, args: argparse.Namespace) -> Any:
    """What `main` would build."""
    from uniadapter_jax.config import base_config
    from uniadapter_jax.runs.assembly import build

    path = root / f"clip-{layers}.json"
    path.write_text(json.dumps(clip_config(layers)))
    config = base_config()
    config.backbone = f"random:{path}"
    config.data.records = str(root / "records")
    config.data.update(frames=args.frames, words=WORDS, augment="crop_flip", workers=1, threads=1)
    config.data.prefetch_mb = PREFETCH_MB
    config.train.update(batch_size=args.clips, epochs=0, steps=WARM + args.steps)
    config.train.checkpoint_every = config.train.log_every = WARM + args.steps
    config.selection = "last"
    return build(config)


def seconds_of_loader(made: Any, args: argparse.Namespace) -> float:
    """Wall seconds for a batch, by a loop that does nothing else."""
    batches = Apart(made.train_batches(0))
    for _ in range(WARM):
        next(batches)
    begin = time.perf_counter()
    for _ in range(args.steps):
        next(batches)
    seconds = (time.perf_counter() - begin) / args.steps
    batches.close()
    return seconds


class Apart:
    """Batches of a loader whose processes have the second core for themselves."""

    def __init__(self, batches: Any):
        self._batches, self._first = batches, next(batches)
        for child in multiprocessing.active_children():
            for thread in os.listdir(f"/proc/{child.pid}/task"):
                os.sched_setaffinity(int(thread), {CORES[1]})

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return self

    def __next__(self) -> Mapping[str, Any]:
        first, self._first = self._first, None
        return next(self._batches) if first is None else first

    def close(self) -> None:
        self._batches.close()


class Ready:
    """One batch again and again, as a loader that costs nothing."""

    def __init__(self, batches: Any):
        self._all = itertools.repeat(next(batches))
        batches.close()

    def __next__(self) -> Mapping[str, Any]:
        return next(self._all)

    def close(self) -> None:
        """There is nothing to close."""


def seconds_of_loop(made: Any, source: Any) -> float:
    """Wall seconds of a step, by the loop's own times, which sum up to the time of training."""
    from uniadapter_jax.runs.loop import fit

    batches = made.train_batches
    made.train_batches = lambda start: source(batches(start))
    with tempfile.TemporaryDirectory() as workdir:
        fit(made, pathlib.Path(workdir), lambda *_: {})
        lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if line["kind"] == "train"]
    return statistics.fmean(line["seconds"] for line in steps[WARM:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=8, help="of a batch")
    parser.add_argument("--frames", type=int, default=12, help="of a clip")
    parser.add_argument("--steps", type=int, default=30, help="that are measured")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        make_records(root, 4 * args.clips, args.frames)
        trial = experiment(root, 2, args)
        loader = seconds_of_loader(trial, args)
        two, four = (seconds_of_loop(experiment(root, n, args), Ready) for n in (2, 4))
        layers = max(1, round(2 + (loader - two) / max((four - two) / 2, 1e-9)))
        print(f"a batch takes {loader:.3f} s; so the vision tower gets {layers} layers")
        print(
            "| round | loader, s | step, s | together, s | of the longer |\n|---|---|---|---|---|"
        )
        ratios = []
        for number in range(args.rounds):
            alone = seconds_of_loader(experiment(root, layers, args), args)
            step, together = (
                seconds_of_loop(experiment(root, layers, args), source) for source in (Ready, Apart)
            )
            ratios.append(together / max(alone, step))
            print(f"| {number} | {alone:.3f} | {step:.3f} | {together:.3f} | {ratios[-1]:.2f} |")
        print(f"median {statistics.median(ratios):.2f}, asked for: {BAR}")


if __name__ == "__main__":
    CORES = sorted(os.sched_getaffinity(0))[:2]
    if len(CORES) < 2:
        raise SystemExit("error: two cores are needed, one for the loader and one for the step")
    os.sched_setaffinity(0, {CORES[0]})  # before JAX counts them
    main()
