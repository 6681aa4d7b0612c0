"""How fast `prepare` decodes, beside `ffmpeg -vf fps=1,scale` on the same files, taking turns.

    python benchmarks/prepare_speed.py            # clips of 30 s that it makes itself; needs ffmpeg
    python benchmarks/prepare_speed.py --quick    # small ones, to see that it runs

Clips are 720p H.264 at 25 frames per second, of a moving scene with grain, with a key frame every
10 s and every second. Both sides take a frame per second at a short side of 224 and write JPEGs, in
one thread. Ratios above 1 are in favour of `prepare`. Processor time is what other work on the
machine disturbs least: of two workers it says how much more they use together than one does. One
worker and two take turns, too.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import argparse
import dataclasses
import multiprocessing
import os
import re
import resource
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import av
import numpy as np
from PIL import Image

from uniadapter_jax.common import signals
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.preparation.clips import Clip, PrepareSettings, read_clip, read_clips
from uniadapter_jax.data.preparation.shards import ITEMS_PER_SHARD, plan_shards
from uniadapter_jax.data.preparation.windows import spans
from uniadapter_jax.data.preparation.workers import decode_shards
from uniadapter_jax.data.sources.item import Item

SETTINGS = PrepareSettings("manifest", "fps", 1.0, 12, 224, 95, 0.0)
RATE = 25
KEY_FRAMES = {"every 10 s": 10 * RATE, "every second": RATE}
SHARDS = 4  # of the work for several workers: a minute or more, so that their start counts little
WIDTH, HEIGHT = 1280, 720


@dataclasses.dataclass(frozen=True)
class Took:
    """Seconds: by the clock, and of processors."""

    wall: float
    cpu: float


def scenes(frames: int) -> Iterator[np.ndarray]:
    """Pictures of a slow pan over something smooth, with a fast thing before it and grain."""
    rng = np.random.default_rng(0)
    scene = smooth(rng, (40, 80), (2048, 1024))
    thing = smooth(rng, (8, 8), (160, 160))
    grain = rng.integers(-6, 7, (4, HEIGHT, WIDTH, 1)).astype(np.int16)
    for i in range(frames):
        left, top = int(380 + 370 * np.sin(i / 90)), int(150 + 140 * np.cos(i / 70))
        view = scene[top : top + HEIGHT, left : left + WIDTH] + grain[i % 4]
        picture = np.clip(view, 0, 255).astype(np.uint8)
        x, y = int(560 + 500 * np.sin(i / 23)), int(280 + 270 * np.sin(i / 17))
        picture[y : y + 160, x : x + 160] = thing
        yield picture


def smooth(rng: np.random.Generator, cells: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    coarse = Image.fromarray(rng.integers(0, 256, (*cells, 3), dtype=np.uint8))
    return np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)


def make_clips(root: str, seconds: int) -> dict[str, str]:
    """A file for each distance of key frames."""
    paths = {name: os.path.join(root, f"{gap}.mp4") for name, gap in KEY_FRAMES.items()}
    for name, path in paths.items():
        gap = str(KEY_FRAMES[name])
        with av.open(path, "w") as file:
            options = {"preset": "veryfast", "g": gap, "keyint_min": gap, "threads": "1"}
            stream = file.add_stream("libx264", rate=RATE, options=options)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for picture in scenes(seconds * RATE):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            file.mux(stream.encode())
    return paths


def timed(run: Callable[[], int], expected: int) -> Took:
    begin, before = time.perf_counter(), _cpu()
    frames = run()
    if abs(frames - expected) > 1:
        raise UserError(f"{frames} frames of {expected}")
    return Took(time.perf_counter() - begin, _cpu() - before)


def _cpu() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def ours(path: str) -> int:
    return len(read_clip(Item("clip", path, "train", ("a clip",)), "", SETTINGS).frames)


def ffmpegs(path: str) -> int:
    with tempfile.TemporaryDirectory() as out:
        one = ["-threads", "1"]
        command = ["ffmpeg", "-v", "error", *one, "-i", path, "-vf", "fps=1,scale=-2:224"]
        command += ["-filter_threads", "1", *one, "-q:v", "2", os.path.join(out, "%d.jpg")]
        subprocess.run(command, check=True)
        return len(os.listdir(out))


def compare(path: str, seconds: int, rounds: int) -> tuple[list[Took], list[Took]]:
    turns = [
        (timed(lambda: ours(path), seconds), timed(lambda: ffmpegs(path), seconds))
        for _ in range(rounds)
    ]
    return [a for a, _ in turns], [b for _, b in turns]


def windows(path: str, seconds: int) -> tuple[Took, Took]:
    """Windows of 4 s every 2 s of a file: read together, and one by one."""
    items = [
        Item(str(start), path, "train", ("a clip",), start, end)
        for start, end in spans(seconds, 4.0, 2.0)
    ]

    def frames(clips: list[Clip]) -> int:
        return sum(len(clip.frames) for clip in clips)

    together = timed(lambda: frames(read_clips(items, "", SETTINGS)), 4 * len(items))
    alone = timed(lambda: frames([read_clip(i, "", SETTINGS) for i in items]), 4 * len(items))
    return together, alone


def by_workers(path: str, root: str, workers: int) -> tuple[Took, int]:
    """What `SHARDS` shards of links to a file take, and the most MB of one worker."""
    folder, shards = os.path.join(root, "links"), os.path.join(root, "shards")
    for directory in (folder, shards):
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
    items = []
    for i in range(SHARDS * ITEMS_PER_SHARD):
        os.symlink(path, os.path.join(folder, f"{i}.mp4"))
        items.append(Item(str(i), f"{i}.mp4", "train", ("a clip",)))
    planned, done = plan_shards(items, folder, SETTINGS, shards), threading.Event()
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(done, peak))
    watcher.start()
    begin, before = time.perf_counter(), _cpu()
    decode_shards(planned, folder, SETTINGS, workers, lambda count, bad: None)
    took = Took(time.perf_counter() - begin, _cpu() - before)
    done.set()
    watcher.join()
    return took, peak[0]


def _watch(done: threading.Event, peak: list[int]) -> None:
    """Notes the largest peak of a child in MB, while the system tells it."""
    while not done.wait(0.2):
        for child in multiprocessing.active_children():
            try:
                with open(f"/proc/{child.pid}/status") as file:
                    found = re.search(r"VmHWM:\s*(\d+)", file.read())
            except OSError:
                continue
            peak[0] = max(peak[0], int(found[1]) // 1024 if found else 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not shutil.which("ffmpeg"):
        raise SystemExit("no ffmpeg here; on Debian: apt-get install ffmpeg")
    seconds, rounds = (4, 1) if options.quick else (30, options.rounds)
    with tempfile.TemporaryDirectory() as root:
        paths = make_clips(root, seconds)
        print("| key frames | ms a clip: prepare | ffmpeg | x by processor time | x by wall time |")
        print("|---|---|---|---|---|")
        for name, path in paths.items():
            mine, theirs = compare(path, seconds, rounds)
            cpu, theirs_cpu = (statistics.median(t.cpu for t in side) for side in (mine, theirs))
            wall, theirs_wall = (statistics.median(t.wall for t in side) for side in (mine, theirs))
            print(
                f"| {name} | {1e3 * cpu:.0f} | {1e3 * theirs_cpu:.0f} | {theirs_cpu / cpu:.2f} "
                f"| {theirs_wall / wall:.2f} |",
                flush=True,
            )
        for name, path in paths.items():
            together, alone = windows(path, seconds)
            print(
                f"windows of 4 s every 2 s, key frames {name}: {1e3 * together.cpu:.0f} ms of "
                f"processor time together, {1e3 * alone.cpu:.0f} one by one",
                flush=True,
            )
        turns = [by_workers(paths["every second"], root, n) for _ in range(rounds) for n in (1, 2)]
        one, two = ([took for took, _ in turns[start::2]] for start in (0, 1))
        wall, cpu = (
            statistics.median(getattr(took, clock) for took in one)
            / statistics.median(getattr(took, clock) for took in two)
            for clock in ("wall", "cpu")
        )
        print(
            f"2 workers: {wall:.2f} x one by wall time, with {1 / cpu:.2f} x its processor time; "
            f"a worker's peak {max(peak for _, peak in turns)} MB"
        )


if __name__ == "__main__":
    signals.run(main)
