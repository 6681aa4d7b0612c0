"""Claims a workdir for a run: it can be written, and no other run works or has worked there."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from typing import Any

import jax
from ml_collections import ConfigDict

from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError, read_json, write_json, write_whole
from uniadapter_jax.runs.assembly import Experiment
from uniadapter_jax.runs.identity import check_identity
from uniadapter_jax.runs.workdir import holding


def claim(workdir: pathlib.Path, stack: contextlib.ExitStack) -> None:
    """Makes the workdir, checks that it can be written, and locks it, before hours of work.

    A command that is refused later leaves no empty directory.
    """
    if jax.process_index() != 0:
        return
    stack.callback(_remove_empty, _missing(workdir))
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot write there: {error.strerror}; choose another"
        ) from error
    stack.enter_context(holding(workdir, "a run"))


def _missing(place: pathlib.Path) -> list[pathlib.Path]:
    """The directories that making `place` makes, the deepest first."""
    return [path for path in (place, *place.parents) if not path.exists()]


def _remove_empty(made: list[pathlib.Path]) -> None:
    for path in made:
        with contextlib.suppress(OSError):  # one that holds something stays
            path.rmdir()


def check_workdir(workdir: pathlib.Path, experiment: Experiment) -> None:
    """Raises if the workdir has another run that has taken a step; changes nothing."""
    try:
        saved = read_json(workdir / "identity.json")
        check_identity(workdir, saved, experiment.identity, _stored_config(workdir))
    except FileNotFoundError:
        return
    except FileError as error:
        raise UserError(
            f"{error}. The checkpoints hold the same: remove the file, and the command goes on"
        ) from error
    except UserError:
        if _has_begun(workdir):
            raise


def _stored_config(workdir: pathlib.Path) -> dict[str, Any]:
    """The config of the run in the workdir, {} if it cannot be read."""
    try:
        return read_json(workdir / "config.json")
    except (FileNotFoundError, FileError):
        return {}


def _has_begun(workdir: pathlib.Path) -> bool:
    """Whether a run has left a checkpoint, sound or not, or a line of metrics."""
    metrics = workdir / "metrics.jsonl"
    checkpoints = workdir / "checkpoints"
    names = [place.name for place in checkpoints.iterdir()] if checkpoints.is_dir() else []
    has_checkpoint = any(name[:1].isdigit() for name in names)
    return has_checkpoint or (metrics.is_file() and metrics.stat().st_size > 0)


def keep_identity(workdir: pathlib.Path, experiment: Experiment) -> None:
    """Writes identity.json, which marks the workdir as this run's, and config.json."""
    if jax.process_index() == 0:
        text = experiment.config.to_json_best_effort(indent=2)
        write_whole(workdir / "config.json", f"{text}\n")
        write_json(workdir / "identity.json", experiment.identity)


def check_target(config: ConfigDict, directory: str) -> None:
    """Raises unless a trained backbone can be saved there, before hours of work."""
    if not get_method(config.method.name).trains_backbone:
        raise UserError("--save-backbone is for method=full: other methods keep the backbone")
    target = pathlib.Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--save-backbone={directory} exists and is not empty; choose another")
