"""One run from config to result.json."""

from __future__ import annotations

import contextlib
import hashlib
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
from ml_collections import ConfigDict

from uniadapter_jax import __version__
from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError, read_json, write_json, write_whole
from uniadapter_jax.data.tokenizers.truncation import Limits, count_cut, cut_lines
from uniadapter_jax.parallel import launch
from uniadapter_jax.parallel.preemption import leaving_on_signal
from uniadapter_jax.parallel.progress import duration, say
from uniadapter_jax.runs.assembly import Experiment, build
from uniadapter_jax.runs.checkpoint import last_step
from uniadapter_jax.runs.identity import check_identity
from uniadapter_jax.runs.loop import Fit, fit
from uniadapter_jax.runs.results import keep_result, set_aside
from uniadapter_jax.runs.workdir import holding
from uniadapter_jax.tasks.retrieval import caveats
from uniadapter_jax.weights.directory import save_backbone

SCHEMA = 1
# What may differ between processes: where things lie, and how much of a machine is used.
_OWN_FIELDS = (
    *("name", "backbone", "tokenizer", "data.records", "data.workers", "data.threads"),
    *("data.prefetch_mb", "train.log_every"),
)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow", "av")


def run(
    config: ConfigDict, workdir: str | os.PathLike, save_backbone_to: str | None = None
) -> dict[str, Any]:
    """Builds, trains (or resumes), tests, and writes `workdir/result.json`, which it returns.

    The schema of the result is in docs/results.md.

    Raises:
      UserError: something does not fit, or cannot be written; with several processes on all of
        them, whichever found it.
      Preempted: after SIGTERM or SIGINT; the same call goes on where it was.
    """
    with leaving_on_signal(), contextlib.ExitStack() as stack:
        return _run(config, pathlib.Path(workdir), save_backbone_to, stack)


def _run(
    config: ConfigDict,
    workdir: pathlib.Path,
    save_backbone_to: str | None,
    stack: contextlib.ExitStack,
) -> dict[str, Any]:
    """`stack` keeps the lock on the workdir."""
    began = time.time()
    experiment = _build_together(config, workdir, save_backbone_to, stack)
    _keep_identity(workdir, experiment)
    if jax.process_index() == 0:
        set_aside(workdir, experiment.identity, experiment.evaluation)
    _announce(experiment)
    evaluate = experiment.kind.evaluator(experiment, workdir)
    trained = fit(experiment, workdir, evaluate)
    found = evaluate(trained.trainable, experiment.data.test)
    result = {**_describe(experiment, trained, found), "seconds": time.time() - began}
    if jax.process_index() == 0:
        keep_result(workdir, result)
        if save_backbone_to:
            part = experiment.partition
            model = part.merge(trained.trainable, part.frozen)
            with disk_errors(pathlib.Path(save_backbone_to), 4 * part.counts()["total"]):
                save_backbone(model, save_backbone_to, experiment.tokenizer_directory)
    for line in summary(result):
        say(line)
    return result


def _build_together(
    config: ConfigDict,
    workdir: pathlib.Path,
    save_backbone_to: str | None,
    stack: contextlib.ExitStack,
) -> Experiment:
    """Builds; raises on all processes if one could not or if their settings differ."""
    experiment, mine = None, {}
    try:
        if save_backbone_to:
            _check_target(config, save_backbone_to)
        _claim(workdir, stack)
        experiment = build(config)
        _check_workdir(workdir, experiment)
        mine = {
            **experiment.identity,
            "evaluation": experiment.evaluation,
            **_flat_fields(experiment.config),
            "mesh": dict(experiment.mesh.shape),
            "workdir's last checkpoint": last_step(workdir / "checkpoints"),
            **_versions(),
            "code revision": _revision(),
            "code": _code(),
        }
    except UserError as error:
        if jax.process_count() == 1:
            raise
        mine = {"error": str(error)}
    sides = launch.exchange(mine)
    _check_agreement(sides)
    assert experiment is not None
    return experiment


def _check_target(config: ConfigDict, directory: str) -> None:
    if not get_method(config.method.name).trains_backbone:
        raise UserError("--save-backbone is for method=full: other methods keep the backbone")
    target = pathlib.Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--save-backbone={directory} exists and is not empty; choose another")


def _flat_fields(config: ConfigDict, prefix: str = "") -> dict[str, str]:
    """Every field that has to be the same on all processes, as text."""
    fields: dict[str, str] = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        if isinstance(value, ConfigDict):
            fields |= _flat_fields(value, f"{path}.")
        elif path not in _OWN_FIELDS:
            fields[f"config.{path}"] = repr(value)
    return fields


def _check_agreement(sides: list[dict[str, Any]]) -> None:
    """Raises unless all processes have the same values; every difference with all sides."""
    failed = [f"process {i}: {s['error']}" for i, s in enumerate(sides) if "error" in s]
    if failed:
        raise UserError("; ".join(failed))
    differing = [
        f"{field}: " + ", ".join(f"process {i} has {s.get(field)!r}" for i, s in enumerate(sides))
        for field in sorted(set().union(*sides))
        if any(side.get(field) != sides[0].get(field) for side in sides)
    ]
    if differing:
        raise UserError("the processes disagree:\n  " + "\n  ".join(differing))


def _claim(workdir: pathlib.Path, stack: contextlib.ExitStack) -> None:
    """Makes the workdir, proves that it can be written, and locks it, before hours of work."""
    if jax.process_index() != 0:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot write there: {error.strerror}; choose another"
        ) from error
    stack.enter_context(holding(workdir, "a run"))


def _check_workdir(workdir: pathlib.Path, experiment: Experiment) -> None:
    """Raises if another run lies there that has taken a step; changes nothing."""
    try:
        saved = read_json(workdir / "identity.json")
        check_identity(workdir, saved, experiment.identity, _config_there(workdir))
    except FileNotFoundError:
        return
    except FileError as error:
        raise UserError(
            f"{error}. The checkpoints hold the same: remove the file, and the command goes on"
        ) from error
    except UserError:
        if _has_begun(workdir):
            raise


def _config_there(workdir: pathlib.Path) -> dict[str, Any]:
    """The config of the run that lies there, {} if it cannot be read."""
    try:
        return read_json(workdir / "config.json")
    except (FileNotFoundError, FileError):
        return {}


def _has_begun(workdir: pathlib.Path) -> bool:
    """Whether a run has left a checkpoint, sound or not, or a line of metrics."""
    metrics = workdir / "metrics.jsonl"
    checkpoints = workdir / "checkpoints"
    names = [place.name for place in checkpoints.iterdir()] if checkpoints.is_dir() else []
    left = any(name[:1].isdigit() for name in names)
    return left or (metrics.is_file() and metrics.stat().st_size > 0)


def _keep_identity(workdir: pathlib.Path, experiment: Experiment) -> None:
    """Marks the workdir as this run's, and leaves the config for people."""
    if jax.process_index() == 0:
        text = experiment.config.to_json_best_effort(indent=2)
        write_whole(workdir / "config.json", f"{text}\n")
        write_json(workdir / "identity.json", experiment.identity)


def _announce(experiment: Experiment) -> None:
    counts = experiment.partition.counts()
    data = experiment.data
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    say(experiment.partition.table())
    say(
        f"{experiment.method.name}: {counts['trained']:,} of {counts['total']:,} parameters train "
        f"({counts['percent']:.3f} %)"
    )
    clips = ", ".join(f"{name} {len(records)}" for name, records in data.named().items())
    mesh = dict(experiment.mesh.shape)
    say(f"clips: {clips}; {experiment.total_steps} steps; mesh {mesh}, {devices}")
    if jax.process_index() == 0:
        announce_cut(experiment)


def announce_cut(experiment: Experiment) -> None:
    """Says which texts of this run are cut. The test's answers are compared, not read."""
    limits, samples = Limits.from_config(experiment.config.data), experiment.kind.samples
    assert limits is not None  # a run's config has all fields
    for name, records in experiment.data.named().items():
        texts = [*samples.texts, *(samples.train_texts if name == "train" else ())]
        counts = count_cut(records, experiment.tokenizer, limits, texts)
        for line in cut_lines(name, counts, limits):
            say(line)


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


def _code() -> str:
    """SHA-256 of this package's source files; tells what no revision does, such as local edits."""
    root = pathlib.Path(__file__).parent
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        whole.update(f"{path.relative_to(root)}\n".encode())
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


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
        "evaluation": experiment.evaluation,
        "task": experiment.kind.name,
        "protocol": {key: config.task[key] for key in experiment.kind.protocol},
        "config": json.loads(config.to_json_best_effort()),
        "versions": _versions(),
        "revision": _revision(),
        "devices": {"count": jax.device_count(), "kind": jax.devices()[0].device_kind},
        "processes": jax.process_count(),
    }


def summary(result: dict[str, Any]) -> list[str]:
    """A few lines for people."""
    sizes = ", ".join(f"{result[n]} {n}" for n in ("clips", "texts", "questions") if n in result)
    lines = [f"{result['method']} on {sizes}:"]
    for way, values in result["metrics"].items():
        shown = "  ".join(f"{name} {value:.1f}" for name, value in values.items())
        lines.append(f"  {way}  {shown}")
    lines += [f"  {line}" for line in caveats.of_result(result)]
    if result["data_wait_share"] is not None:
        lines.append(f"  data wait {result['data_wait_share']:.1%} of the training time")
    lines.append(f"  {duration(result['seconds'])} in all")
    return lines
