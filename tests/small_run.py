"""A whole run, small: records of pictures and films, a backbone, a config, and the command.

`small` (a session fixture, see conftest.py) makes the inputs once. All runs share one cache of
compiled programs, so that only the first of a kind compiles.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from typing import Any

import av
import fast_xla
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import small_child
import tiny
from PIL import Image, ImageDraw

import uniadapter_jax
from uniadapter_jax.config import base_config
from uniadapter_jax.data.preparation.clips import PrepareSettings
from uniadapter_jax.data.tokenizers.clip import load_tokenizer
from uniadapter_jax.prepare import prepare

ROOT = pathlib.Path(uniadapter_jax.__file__).parent.parent
SIDE, BATCH, STEPS, WORDPIECES = 32, 8, 20, 90
# Times the limits of the tests: TEST_PATIENCE=5 for a machine that has other work.
PATIENCE = float(os.environ.get("TEST_PATIENCE", "1"))
OFTEN = "--config.train.checkpoint_every=2"
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("disc", "box", "bar", "cross")

CONFIG = """
from uniadapter_jax.config import base_config, parse_argument


def get_config(argument=None):
    chosen = parse_argument(argument, method="cross_modal_adapter", task="retrieval")
    config = base_config(chosen["method"], chosen["task"])
    config.name = "small"
    config.backbone = "random:{backbone}"
    if chosen["task"] != "retrieval":
        config.backbone = "random:{blip}"
    if chosen["task"] == "matching":
        config.task.queue, config.task.frame_weights = {queue}, True
        config.task.rerank_k, config.task.rerank_rows = 4, 8
    if chosen["task"] == "vqa":
        config.task.metric = "exact"
        config.data.answer_words = 10
    config.data.records = "{records}"
    config.data.frames = 3
    config.data.words = 10
    config.optimizer.lr = 1e-3
    config.train.batch_size = {batch}
    config.train.steps = {steps}
    config.eval.batch_size = 8
    return config
"""


@dataclasses.dataclass(frozen=True)
class Small:
    """Where the inputs of a small run lie."""

    root: pathlib.Path
    compiled: pathlib.Path  # programs, of all runs and of all workers of the tests

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

    @property
    def blip(self) -> pathlib.Path:
        """Likewise, of a BLIP."""
        return self.root / "blip.json"

    def arguments(
        self, *flags: str, method: str = "cross_modal_adapter", task: str = "retrieval"
    ) -> list[str]:
        """Of the command; flags come last, so that they win."""
        return [f"--config={self.config}:method={method},task={task}", *flags]

    def environment(self, devices: int) -> dict[str, str]:
        """Of a process with so many fake devices."""
        return {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {fast_xla.FLAGS}",
            "JAX_COMPILATION_CACHE_DIR": str(self.compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def start(self, *arguments: str, devices: int = 1, code: pathlib.Path | str = ROOT) -> Job:
        """`python -m uniadapter_jax.main ARGUMENTS` as a user starts it, with the code there."""
        log = self._log()
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "uniadapter_jax.main", *arguments],
                env=os.environ | self.environment(devices) | {"PYTHONPATH": str(code)},
                cwd=self.root,
                stdout=output,
                stderr=output,
            )
        return Job(process.pid, log, process.wait)

    def fork(self, *arguments: str, devices: int = 1, **options: Any) -> Job:
        """The same without the seconds of importing; `small_child.run_main` has the options."""
        log = self._log()
        where = (self.environment(devices), str(self.root), str(log))
        process = _start(small_child.run_main, list(arguments), *where, **options)

        def wait(seconds: float) -> int | None:
            process.join(seconds)
            return process.exitcode

        return Job(process.pid, log, wait)

    def run(self, *flags: str, method: str = "cross_modal_adapter", **options: Any) -> str:
        """A forked command that ends well; what it said."""
        return self.fork(*self.arguments(*flags, method=method), **options).end(0)

    def refused(self, *arguments: str, **options: Any) -> str:
        """A forked command that ends with one report and status 2: the report."""
        said = self.fork(*arguments, **options).end(2)
        report = said[said.index("error: ") :]
        assert "Traceback" not in said and report.count("error: ") == 1, said
        return report

    def _log(self) -> pathlib.Path:
        (self.root / "logs").mkdir(exist_ok=True)
        return self.root / "logs" / f"{next(_NUMBERS)}.txt"


def child(module: str, function: str, arguments: tuple[Any, ...]) -> Any:
    """A started process, forked with everything imported, that calls a function of a module."""
    return _start(small_child.call, module, function, arguments)


def _start(target: Callable[..., None], *args: Any, **kwargs: Any) -> Any:
    """A child of the server, which imports `small_child` once.

    The server passes over what it cannot import, and does not get this process's `sys.path`, where
    pytest put the tests; so it gets it by its environment, and each child asserts that it came.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()
    process = _SERVER.Process(target=target, args=args, kwargs=kwargs)
    process.start()
    return process


def remove(directory: pathlib.Path) -> None:
    """The directory and all in it, if there is one."""
    if directory.exists():
        shutil.rmtree(directory)


_NUMBERS = itertools.count()
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["pytest", "small_child"])


@dataclasses.dataclass(frozen=True)
class Job:
    """A command at work."""

    pid: int
    log: pathlib.Path
    wait: Callable[[float], int | None]

    @property
    def said(self) -> str:
        """Both output streams so far."""
        return self.log.read_text()

    def end(self, status: int | None = None, seconds: float = 120) -> str:
        """Waits; what it said. A command that hangs is killed, and that or another status fails."""
        seconds *= PATIENCE
        try:
            found = self.wait(seconds)
        except subprocess.TimeoutExpired:
            found = None
        if found is None:
            self.signal(signal.SIGKILL)
        assert found is not None, f"still running after {seconds} s: {self.said[-4000:]}"
        assert status is None or found == status, f"status {found}: {self.said[-4000:]}"
        return self.said

    def signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def await_(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Returns as soon as the condition holds."""
        end = time.monotonic() + seconds * PATIENCE
        while not condition():
            left = time.monotonic() < end and not self._ended()
            assert left or condition(), f"it never came: {self.said[-4000:]}"
            time.sleep(0.001)

    def _ended(self) -> bool:
        try:
            return self.wait(0) is not None
        except subprocess.TimeoutExpired:
            return False


def cache_of_programs(tmp_path_factory) -> pathlib.Path:
    """The directory of compiled programs, one for all workers of the tests and their children."""
    base = tmp_path_factory.getbasetemp()
    common = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return common / "xla"


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory):
    """Lets the tests' own process use the cache: a program is compiled once in a session."""
    jax.config.update("jax_compilation_cache_dir", str(cache_of_programs(tmp_path_factory)))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Small:
    """The inputs: 26 train and 9 test clips, a tokenizer, a config of 2 + 2 layers."""
    made = Small(tmp_path_factory.mktemp("small"), cache_of_programs(tmp_path_factory))
    manifest = _draw_clips(made.root / "media")
    settings = PrepareSettings.from_config(base_config().data.prepare)
    sizes = {"tokenizer_size": 520, "wordpiece_size": WORDPIECES}
    prepare(settings, str(manifest), str(made.records), **sizes)
    tokenizer = load_tokenizer(made.records / "tokenizer")
    config = tiny.hf_config(vision_layers=2, text_layers=2)
    config["text_config"] |= {
        "vocab_size": tokenizer.vocab_size,
        "eos_token_id": tokenizer.eos_id,
        "max_position_embeddings": 16,
    }
    made.backbone.write_text(json.dumps(config))
    ids = {"vocab_size": WORDPIECES + 2, "bos_token_id": WORDPIECES, "sep_token_id": 3}
    blip = tiny.blip_config(**ids, max_position_embeddings=16)
    made.blip.write_text(json.dumps(blip))
    filled = CONFIG.format(
        backbone=made.backbone,
        blip=made.blip,
        records=made.records,
        queue=3 * BATCH,
        batch=BATCH,
        steps=STEPS,
    )
    made.config.write_text(filled)
    return made


@pytest.fixture(scope="session")
def whole(small) -> pathlib.Path:
    """The workdir of the adapter's run on one device, which nothing disturbed."""
    small.run("--workdir=whole", OFTEN)
    return small.root / "whole"


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
        asked = [
            {"question": "What colour is it?", "answer": colour, "question_type": "colour"},
            {"question": f"Is it a {shape}?", "answer": "yes", "question_type": "shape"},
        ]
        line = {"id": f"clip{i}", "path": name, "captions": captions, "split": split}
        lines.append({**line, "qa": asked[: 1 + i % 2]})
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
    place = workdir / "checkpoints" / str(step) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        stored = reader.metadata(place).item_metadata.tree
        arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        state = reader.restore(place, ocp.args.PyTreeRestore(restore_args=arrays))
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


def drop_digests(records: pathlib.Path) -> None:
    """Makes records what they were before prepare.json held digests, so that a test may edit."""
    path = records / "prepare.json"
    content = json.loads(path.read_text())
    kept = {name: content[name] for name in content if name not in ("files", "sha256")}
    path.write_text(json.dumps(kept))
