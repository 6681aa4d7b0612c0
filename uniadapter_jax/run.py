"""One run from config to result.json."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import tempfile
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from uniadapter_jax import __version__
from uniadapter_jax.checkpoint import check_identity, disk_errors
from uniadapter_jax.errors import UserError
from uniadapter_jax.evaluate import Encoder, evaluate
from uniadapter_jax.experiment import Experiment, build
from uniadapter_jax.progress import duration, say
from uniadapter_jax.train import Fit, fit
from uniadapter_jax.weights.directory import save_backbone

SCHEMA = 1
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow", "av")


def run(
    config: ConfigDict, workdir: str | os.PathLike, save_backbone_to: str | None = None
) -> dict[str, Any]:
    """Builds, trains (or resumes), tests, and writes `workdir/result.json`, which it returns.

    The schema of the result is in docs/results.md.
    """
    began = time.time()
    workdir = pathlib.Path(workdir)
    if save_backbone_to and config.method.name != "full":
        raise UserError("--save-backbone is for method=full: other methods keep the backbone")
    _claim(workdir)
    experiment = build(config)
    _check_workdir(workdir, experiment)
    _check_processes_agree(experiment)
    _announce(experiment)
    encoder = Encoder(experiment)
    with disk_errors(workdir, 0):
        trained = fit(experiment, workdir, encoder)
        found = evaluate(encoder, trained.trainable, experiment.data.test)
        result = {**_describe(experiment, trained, found), "seconds": time.time() - began}
        if jax.process_index() == 0:
            _write_json(workdir / "result.json", result)
            if save_backbone_to:
                part = experiment.partition
                model = part.merge(trained.trainable, part.frozen)
                save_backbone(model, save_backbone_to, experiment.tokenizer_directory)
    for line in summary(result):
        say(line)
    return result


def _claim(workdir: pathlib.Path) -> None:
    """Makes the workdir and proves that it can be written, before hours of work."""
    if jax.process_index() != 0:
        return
    with disk_errors(workdir, 0):
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass


def _check_workdir(workdir: pathlib.Path, experiment: Experiment) -> None:
    """Raises if the result of another run lies there; else leaves the config for people."""
    result = workdir / "result.json"
    if result.is_file():
        check_identity(workdir, json.loads(result.read_text())["identity"], experiment.identity)
    if jax.process_index() == 0 and not (workdir / "config.json").is_file():
        _replace(workdir / "config.json", experiment.config.to_json_best_effort(indent=2) + "\n")


def _replace(path: pathlib.Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.tmp")
    with scratch.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def _write_json(path: pathlib.Path, value: Any) -> None:
    _replace(path, json.dumps(value, indent=1) + "\n")


def _check_processes_agree(experiment: Experiment) -> None:
    """Raises on every process, naming the fields, unless all of them are to compute the same."""
    if jax.process_count() == 1:
        return
    mine = {**experiment.identity, "mesh": dict(experiment.mesh.shape), **_versions()}
    text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([text.size]))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: text.size] = text
    texts = multihost_utils.process_allgather(padded)
    sides = [
        json.loads(row[: int(size)].tobytes())
        for row, size in zip(texts.reshape(len(texts), -1), sizes.ravel(), strict=True)
    ]
    differing = [
        f"{field}: " + ", ".join(f"process {i} has {s.get(field)!r}" for i, s in enumerate(sides))
        for field in sorted(set().union(*sides))
        if any(side.get(field) != sides[0].get(field) for side in sides)
    ]
    if differing:
        raise UserError("the processes disagree:\n  " + "\n  ".join(differing))


def _announce(experiment: Experiment) -> None:
    counts = experiment.partition.counts()
    data = experiment.data
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    say(experiment.partition.table())
    say(
        f"{experiment.method.name}: {counts['trained']:,} of {counts['total']:,} parameters train "
        f"({counts['percent']:.3f} %)"
    )
    clips = ", ".join(
        f"{name} {len(part)}"
        for name, part in (("train", data.train), ("val", data.val), ("test", data.test))
        if part is not None
    )
    mesh = dict(experiment.mesh.shape)
    say(f"clips: {clips}; {experiment.total_steps} steps; mesh {mesh}, {devices}")


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"uniadapter_jax": __version__, "python": platform.python_version(), **found}


def _revision() -> str | None:
    """The git revision of the code, where it runs from a checkout."""
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def _describe(experiment: Experiment, trained: Fit, found: dict[str, Any]) -> dict[str, Any]:
    config = experiment.config
    test = experiment.data.test
    return {
        "schema": SCHEMA,
        "name": config.name,
        "method": experiment.method.name,
        "seed": config.seed,
        "selection": config.selection,
        "step": trained.step,
        "total_steps": experiment.total_steps,
        "parameters": experiment.partition.counts(),
        **found,
        "final_loss": trained.final_loss,
        "data_wait_share": trained.data_wait_share,
        "train_seconds": trained.seconds,
        "data": {"fingerprint": test.fingerprint, "coverage": test.coverage},
        "fingerprint": experiment.backbone.fingerprint,
        "backbone": config.backbone,
        "identity": experiment.identity,
        "protocol": {key: config.task[key] for key in ("similarity", "v2t", "ties")},
        "config": json.loads(config.to_json_best_effort()),
        "versions": _versions(),
        "revision": _revision(),
        "devices": {"count": jax.device_count(), "kind": jax.devices()[0].device_kind},
        "processes": jax.process_count(),
    }


def summary(result: dict[str, Any]) -> list[str]:
    """A few lines for people."""
    lines = [f"{result['method']} on {result['clips']} clips, {result['texts']} texts:"]
    for way, values in result["metrics"].items():
        shown = "  ".join(f"{name} {value:.1f}" for name, value in values.items())
        lines.append(f"  {way}  {shown}")
    if result["data_wait_share"] is not None:
        lines.append(f"  data wait {result['data_wait_share']:.1%} of the training time")
    lines.append(f"  {duration(result['seconds'])} in all")
    return lines
