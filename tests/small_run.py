"""A whole run, small: records of pictures and films, a backbone, a config, and the command.

`small` (a session fixture, see conftest.py) makes the inputs once. All runs share one cache of
compiled programs, so that only the first of a kind compiles.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import av
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image, ImageDraw

import tiny
import uniadapter_jax
from uniadapter_jax.config import base_config
from uniadapter_jax.data.clips import PrepareSettings
from uniadapter_jax.data.text import load_tokenizer
from uniadapter_jax.prepare import prepare

ROOT = pathlib.Path(uniadapter_jax.__file__).parent.parent
SIDE, BATCH, STEPS = 32, 8, 20
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("disc", "box", "bar", "cross")

CONFIG = '''
from uniadapter_jax.config import base_config, parse_argument


def get_config(argument=None):
    config = base_config(parse_argument(argument, method="cross_modal_adapter")["method"])
    config.name = "small"
    config.backbone = "random:{backbone}"
    config.data.records = "{records}"
    config.data.frames = 3
    config.data.words = 10
    config.optimizer.lr = 1e-2
    config.train.batch_size = {batch}
    config.train.steps = {steps}
    config.eval.batch_size = 8
    return config
'''


@dataclasses.dataclass(frozen=True)
class Small:
    """Where the inputs of a small run lie."""

    root: pathlib.Path

    @property
    def records(self) -> pathlib.Path:
        return self.root / "records"

    @property
    def config(self) -> pathlib.Path:
        return self.root / "small.py"

    @property
    def backbone(self) -> pathlib.Path:
        """Of the random weights, a config.json."""
        return self.root / "backbone.json"

    def command(self, *flags: str, method: str = "cross_modal_adapter") -> list[str]:
        """The command line; flags come last, so that they win."""
        config = f"--config={self.config}:method={method}"
        return [sys.executable, "-m", "uniadapter_jax.main", config, *flags]

    def environment(self, devices: int) -> dict[str, str]:
        """Of a process with so many fake devices."""
        return os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(self.root / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def start(
        self, *flags: str, method: str = "cross_modal_adapter", devices: int = 1, **options: Any
    ) -> subprocess.Popen:
        """The command, begun."""
        return subprocess.Popen(
            self.command(*flags, method=method),
            env=self.environment(devices),
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(self, *flags: str, status: int = 0, **options: Any) -> str:
        """The command, finished with that exit status; what it said on stderr."""
        return finish(self.start(*flags, **options), status)


def finish(process: subprocess.Popen, status: int | None = 0, seconds: float = 120) -> str:
    """Waits for the end; stderr. A command that hangs is killed and fails the test."""
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"still running: {process.communicate()[1][-3000:]}") from None
    assert status is None or process.returncode == status, (process.returncode, said[-4000:])
    return said


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Small:
    """The inputs: 26 train and 9 test clips, a tokenizer, a config of 2 + 2 layers."""
    made = Small(tmp_path_factory.mktemp("small"))
    manifest = _draw_clips(made.root / "media")
    settings = PrepareSettings.from_config(base_config().data.prepare)
    prepare(settings, str(manifest), str(made.records), tokenizer_size=520)
    tokenizer = load_tokenizer(made.records / "tokenizer")
    config = tiny.hf_config(vision_layers=2, text_layers=2)
    config["text_config"] |= {
        "vocab_size": tokenizer.vocab_size,
        "eos_token_id": tokenizer.eos_id,
        "max_position_embeddings": 16,
    }
    made.backbone.write_text(json.dumps(config))
    filled = CONFIG.format(backbone=made.backbone, records=made.records, batch=BATCH, steps=STEPS)
    made.config.write_text(filled)
    return made


def _draw_clips(directory: pathlib.Path) -> pathlib.Path:
    """Pictures, and every fifth clip a film of three seconds; returns the manifest."""
    directory.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for i in range(35):
        colour, shape = COLOURS[i % len(COLOURS)], SHAPES[i % len(SHAPES)]
        frames = [_draw(colour, shape, rng) for _ in range(3 if i % 5 == 0 else 1)]
        name = f"{i}.mp4" if len(frames) > 1 else f"{i}.jpg"
        if len(frames) > 1:
            _write_film(directory / name, frames)
        else:
            frames[0].save(directory / name, quality=95)
        captions = [f"a {colour} {shape} number {i}", f"{shape} in {colour}"][: 1 + i % 2]
        split = "train" if i < 26 else "test"
        lines.append({"id": f"clip{i}", "path": name, "captions": captions, "split": split})
    manifest = directory / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest


def _draw(colour: str, shape: str, rng: np.random.Generator) -> Image.Image:
    """A shape at a random place; sides differ, so that cropping has work."""
    picture = Image.new("RGB", (SIDE + 16, SIDE), tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(picture)
    x, y = rng.integers(0, SIDE // 2, 2).tolist()
    box = [x + 8, y, x + 8 + SIDE // 2, y + SIDE // (4 if shape == "bar" else 2)]
    (draw.ellipse if shape == "disc" else draw.rectangle)(box, fill=colour)
    return picture


def _write_film(path: pathlib.Path, frames: list[Image.Image]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def result(workdir: pathlib.Path) -> dict[str, Any]:
    """The result.json of a run."""
    return json.loads((workdir / "result.json").read_text())


def lines(workdir: pathlib.Path, kind: str = "train") -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of one kind."""
    path = workdir / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def losses(workdir: pathlib.Path) -> list[float]:
    """The loss of every step; each step is there once, in order."""
    found = lines(workdir)
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    return [line["loss"] for line in found]


def checkpoint_steps(workdir: pathlib.Path) -> list[int]:
    """Steps whose checkpoint is complete."""
    return sorted(
        int(place.name) for place in (workdir / "checkpoints").iterdir() if place.name.isdigit()
    )


def checkpoint(workdir: pathlib.Path, step: int | None = None) -> dict[str, np.ndarray]:
    """{path: array} of the state in a checkpoint, the last by default, as orbax reads it."""
    step = checkpoint_steps(workdir)[-1] if step is None else step
    with ocp.StandardCheckpointer() as reader:
        state = reader.restore(workdir / "checkpoints" / str(step) / "state")
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def tree_hash(directory: pathlib.Path) -> str:
    """Of every name, size and byte below a directory."""
    whole = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        whole.update(f"{path.relative_to(directory)}\n".encode())
        if path.is_file():
            whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def wait_for(condition: Any, process: subprocess.Popen, seconds: float = 60) -> None:
    """Polls until the condition holds or the process has ended."""
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


def kill(process: subprocess.Popen, number: int = signal.SIGKILL) -> str:
    """Sends a signal; stderr of what has ended."""
    process.send_signal(number)
    return finish(process, None)
