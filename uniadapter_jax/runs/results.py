"""Results of one run by several evaluations: the newest in `result.json`, the others beside it.

`results/<digest>/` holds a result with the files that it names; the digest is that of the training
and evaluation identities.
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.files import FileError, sync_directory
from uniadapter_jax.parallel.progress import say
from uniadapter_jax.runs.files import read_result, write_result
from uniadapter_jax.runs.identity import differences, digest

RESULT, OTHERS = "result.json", "results"


def set_aside(
    workdir: pathlib.Path, training: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> None:
    """Moves a result of another evaluation aside before this one overwrites its files."""
    try:
        result = read_result(workdir / RESULT)
    except FileNotFoundError:
        return
    except FileError as error:
        say(f"warning: {error}; it is written anew")
        return
    saved = _evaluation_of(result)
    trained_alike = not differences(result.get("identity", {}), training, result.get("config"))
    if trained_alike and evaluation == {**evaluation, **_common(saved, evaluation)}:
        return
    target = workdir / OTHERS / digest(result.get("identity", {}), saved)[:8]
    scratch = target.with_name(f".{target.name}")
    with disk_errors(target):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        for name in _files(workdir, result):
            shutil.copy2(workdir / name, scratch / name)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
        sync_directory(target.parent)
        if not trained_alike:  # it must not be taken for this run's
            (workdir / RESULT).unlink()
    say(f"the result of another evaluation is kept in {target}")


def keep_result(workdir: pathlib.Path, result: Mapping[str, Any]) -> None:
    """Writes `result.json`; removes an earlier result of the same evaluation."""
    write_result(workdir / RESULT, result)
    place = workdir / OTHERS / digest(result["identity"], result["evaluation"])[:8]
    if place.is_dir():
        with disk_errors(place):
            shutil.rmtree(place)


def count_evaluations(
    workdir: pathlib.Path, training: Mapping[str, Any], split: str
) -> dict[str, int]:
    """{split: how often this run's results were measured on it}, with the one being written.

    A measure whose result was not written, because of a kill, does not count: nobody saw it.
    """
    counts = {split: 1}
    for path in (workdir / RESULT, *sorted((workdir / OTHERS).glob(f"*/{RESULT}"))):
        try:
            result = read_result(path)
        except (FileNotFoundError, FileError):
            continue
        if not differences(result.get("identity", {}), training, result.get("config")):
            for name, count in result.get("evaluations", {"test": 1}).items():
                counts[name] = max(counts.get(name, 0), count + (name == split))
    return counts


def _evaluation_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluation identity of a result; earlier versions had it in the config only."""
    if "evaluation" in result:
        return dict(result["evaluation"])
    task = result.get("config", {}).get("task", {})
    options = {f"task.{name}": value for name, value in task.items()}
    return {**options, "data.test": result.get("data", {}).get("fingerprint")}


def _common(saved: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in saved.items() if name in evaluation}


def _files(workdir: pathlib.Path, result: Mapping[str, Any]) -> list[str]:
    """Names of the files of a result, with its answers and their form for the server."""
    names = [RESULT]
    answers = result.get("predictions")
    if isinstance(answers, str):
        server = answers.replace("answers-", "predictions-").removesuffix("l")
        names += [name for name in (answers, server) if (workdir / name).name == name]
    return [name for name in names if (workdir / name).is_file()]
