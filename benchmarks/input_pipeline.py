"""How fast records become host batches: frames per second and per core.

    python benchmarks/input_pipeline.py                       # on records it makes itself
    python benchmarks/input_pipeline.py --shape=square        # stored as the middle that is read
    python benchmarks/input_pipeline.py --stored=60           # of which it takes 12
    python benchmarks/input_pipeline.py --records=data/msrvtt --frames=12 --image_size=224

Frames per core divides by the CPU time of this process and its workers, so other work on the
machine disturbs it little; frames per second is what a training loop would see.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import dataclasses
import json
import multiprocessing
import os
import tempfile
import time

import numpy as np
from absl import flags, logging
from PIL import Image

from uniadapter_jax.common.cores import usable_cores
from uniadapter_jax.common.errors import run_app
from uniadapter_jax.config import base_config
from uniadapter_jax.data.loading.pipeline import train_batches
from uniadapter_jax.data.preparation.clips import CHOICES, PrepareSettings
from uniadapter_jax.data.records import Records, open_records
from uniadapter_jax.prepare import prepare

_RECORDS = flags.DEFINE_string("records", None, "Prepared records; default: made in a temp dir.")
_SPLIT = flags.DEFINE_string("split", "train", "Split of the records.")
_FRAMES = flags.DEFINE_integer("frames", 12, "Frames per clip.", 1)
_STORED = flags.DEFINE_integer("stored", 0, "Stored frames per clip; 0: as many as it takes.", 0)
_SIZE = flags.DEFINE_integer("image_size", 224, "Side of the frames in the batch.", 1)
_BATCH = flags.DEFINE_integer("batch_size", 16, "Clips per batch.", 1)
_SECONDS = flags.DEFINE_float("seconds", 5.0, "Measured time per line, after the first batch.", 0.1)
_WORKERS = flags.DEFINE_list("workers", ["0", "2"], "Worker processes, one line each.")
_THREADS = flags.DEFINE_integer("threads", usable_cores(), "Decoding threads in all.", 1)
_SHAPE = flags.DEFINE_enum("shape", "whole", CHOICES["shape"], "Of the frames that it makes.")
_CLIPS = flags.DEFINE_integer("clips", 48, "Clips to make where there are no records.", 1)

MADE_SIZE = (320, 240)  # MSR-VTT's usual size; stored with a short side of `image_size`


class NoWords:
    """Stands in for a tokenizer, so that pixels alone are measured."""

    def encode(self, texts: list[str], length: int) -> np.ndarray:
        return np.zeros((len(texts), length), np.int32)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Frames made, seconds they took, CPU seconds of all processes."""

    frames: int
    wall: float
    cpu: float


def make_records(root: str, clips: int, frames: int, image_size: int) -> Records:
    """Clips of photograph-like noise as pictures, `frames` of them per clip by a moving crop."""
    import av

    rng = np.random.default_rng(0)
    lines = []
    for c in range(clips):
        coarse = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
        scene = Image.fromarray(coarse).resize((MADE_SIZE[0] + 64, MADE_SIZE[1]), Image.BICUBIC)
        path = os.path.join(root, f"{c}.mp4")
        with av.open(path, "w") as file:
            stream = file.add_stream("libx264", rate=1, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = *MADE_SIZE, "yuv420p"
            for f in range(frames):
                left = 64 * f // frames
                view = scene.crop((left, 0, left + MADE_SIZE[0], MADE_SIZE[1]))
                file.mux(stream.encode(av.VideoFrame.from_image(view)))
            file.mux(stream.encode())
        lines.append(json.dumps({"id": str(c), "path": path, "captions": [f"clip {c}"]}))
    manifest = os.path.join(root, "manifest.jsonl")
    with open(manifest, "w") as file:
        file.write("\n".join(lines))
    settings = PrepareSettings(
        "manifest", "fps", 1.0, frames, image_size, 95, 0.0, shape=_SHAPE.value
    )
    prepare(settings, manifest, os.path.join(root, "records"))
    return open_records(os.path.join(root, "records"), "train")


def measure(records: Records, workers: int, augment: str) -> Measured:
    config = base_config().data
    config.update(frames=_FRAMES.value, augment=augment, workers=workers, threads=_THREADS.value)
    batches = train_batches(
        records,
        NoWords(),
        config,
        image_size=_SIZE.value,
        global_batch=min(_BATCH.value, len(records)),
        seed=0,
    )
    for _ in range(1 + 2 * workers):  # starts workers, opens files, fills buffers
        next(batches)
    begin, before, frames = time.perf_counter(), _cpu_seconds(), 0
    while time.perf_counter() - begin < _SECONDS.value:
        frames += int(next(batches)["frame_mask"].sum())
    measured = Measured(frames, time.perf_counter() - begin, _cpu_seconds() - before)
    batches.close()
    return measured


def _cpu_seconds() -> float:
    """Of this process and, where the system has /proc, of its living workers."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        try:
            with open(f"/proc/{child.pid}/stat") as file:
                after_name = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, after_name[11:13])) / os.sysconf("SC_CLK_TCK")
    return total


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as root:
        if _RECORDS.value:
            records = open_records(_RECORDS.value, _SPLIT.value)
        else:
            records = make_records(root, _CLIPS.value, _STORED.value or _FRAMES.value, _SIZE.value)
        print(
            f"{len(records)} clips, {_FRAMES.value} frames of {_SIZE.value} px, batches of "
            f"{_BATCH.value}, {_THREADS.value} threads, {usable_cores()} cores"
        )
        print("| workers | augment | frames/s | frames/s per core busy | ms per frame and core |")
        print("|---|---|---|---|---|")
        for workers in map(int, _WORKERS.value):
            for augment in ("none", "crop_flip"):
                m = measure(records, workers, augment)
                print(
                    f"| {workers} | {augment} | {m.frames / m.wall:.0f} | {m.frames / m.cpu:.0f} "
                    f"| {1e3 * m.cpu / m.frames:.2f} |"
                )


if __name__ == "__main__":
    run_app(main)
