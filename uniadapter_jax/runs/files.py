"""Reads and checks the files of a workdir: config.json, identity.json and result.json."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError, read_json, sealed, unsealed, write_json
from uniadapter_jax.tasks.retrieval.metrics import DIRECTIONS

# {field of the identity: the name that it has in the config}
IN_CONFIG = {"batch_size": "train.batch_size", "dtype": "compute.dtype"}
# Fields that hold the fingerprint of the files at a path of the config.
_FINGERPRINTS = ("backbone", "tokenizer", "data.records", "data.test")
_RESULT = {
    **{"method": str, "step": int, "seed": int, "selection": str, "metrics": dict, "data": dict},
    **{"parameters": dict, "ranks": dict, "query_ids": dict, "protocol": dict},
    **{"tied_queries": dict, "pessimistic_metrics": dict, "identity": dict, "config": dict},
    **{"also": dict, "split": str, "evaluations": dict, "accuracies": list, "question_ids": list},
    **{"evaluation": dict, "texts": int, "clips": int, "questions": int, "task": str},
}
_ABSENT = object()


class Fields(Mapping[str, Any]):
    """A JSON object of a file; a missing field is an error that names the field and the file."""

    def __init__(self, content: Mapping[str, Any], path: pathlib.Path, prefix: str = ""):
        self._content, self._path, self._prefix = content, path, prefix

    def __getitem__(self, name: str) -> Any:
        if name not in self._content:
            raise FileError(self._path, f"has no field {self._prefix}{name}")
        value = self._content[name]
        if isinstance(value, dict):
            return Fields(value, self._path, f"{self._prefix}{name}.")
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._content

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run read from its workdir; `result` is None if it has none."""

    workdir: pathlib.Path
    config: Mapping[str, Any]
    identity: Mapping[str, Any]
    result: Mapping[str, Any] | None


def read_run(workdir: str | os.PathLike[str]) -> Run:
    """Reads the files of a run.

    Raises:
      UserError: there is no run, or a file is damaged or contradicts another; the message names
        the file and the field.
    """
    workdir = pathlib.Path(workdir)
    contents = {}
    for name in ("config.json", "identity.json"):
        try:
            contents[name] = read_json(workdir / name)
        except FileNotFoundError:
            raise UserError(f"{workdir} holds no {name}, so it is no workdir of a run") from None
    config, identity = contents["config.json"], contents["identity.json"]
    _check_config(workdir / "config.json", config, identity)
    try:
        path = workdir / "result.json"
        result: Mapping[str, Any] | None = Fields(read_result(path), path)
    except FileNotFoundError:
        result = None
    return Run(
        workdir,
        Fields(config, workdir / "config.json", "config."),
        Fields(identity, workdir / "identity.json"),
        result,
    )


def write_result(path: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
    """Writes a result atomically, with a digest of its content under `sha256`."""
    write_json(path, sealed(result))


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a result that `write_result` wrote; those of earlier versions have no digest.

    Raises:
      FileNotFoundError: there is no such file.
      FileError: the file is damaged, or no result.
    """
    result, _ = unsealed(read_json(path), path)
    for name, kind in _RESULT.items():
        if name in result and not isinstance(result[name], kind):
            raise FileError(path, f"{name} should be {kind.__name__}, is {result[name]!r:.80}")
    for name in ("ranks", "query_ids"):
        for group, values in result.get(name, {}).items():
            if not isinstance(values, list):
                raise FileError(path, f"{name}.{group} should be a list")
    if missing := {"texts", "clips"} - set(result) if "texts" in result else ():
        raise FileError(path, f"has no field {missing.pop()}")
    _check_numbers(path, result)
    return result


def _check_numbers(path: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
    """Checks that all numbers that are shown of a result are there, in both search directions."""
    shown = {n: result.get(n, {}) for n in ("metrics", "pessimistic_metrics", "tied_queries")}
    for name, groups in result.get("also", {}).items():
        if not isinstance(groups, dict):
            raise FileError(path, f"also.{name} is {groups!r:.80}")
        shown[f"also.{name}"] = groups
    for name, groups in shown.items():
        for group, values in groups.items():
            if isinstance(values, dict) == (name == "tied_queries"):
                raise FileError(path, f"{name}.{group} is {values!r:.80}")
            numbers = values.values() if isinstance(values, dict) else [values]
            if not all(isinstance(number, int | float) for number in numbers):
                raise FileError(path, f"{name}.{group} should hold numbers")
    for name in ("pessimistic_metrics", "tied_queries"):
        for way in DIRECTIONS if name in result else ():
            if way not in result[name]:
                raise FileError(path, f"has no field {name}.{way}")
            if name == "pessimistic_metrics" and "R@1" not in result[name][way]:
                raise FileError(path, f"has no field {name}.{way}.R@1")


def check_same(where: pathlib.Path, identity: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raises if a field of `identity.json` differs from the checkpoint's identity."""
    for name in sorted(set(identity) & set(other)):
        if identity[name] != other[name]:
            raise FileError(
                where / "identity.json",
                f"{name} is {identity[name]!r}, in the checkpoint it is {other[name]!r}. One of "
                "them is damaged; running the training command again tells which",
            )


def _check_config(
    path: pathlib.Path, config: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    for name in ("name", "backbone", "tokenizer"):
        if not isinstance(config.get(name), str):
            raise FileError(path, f"config.{name} should be a string, is {config.get(name)!r:.80}")
    for name, expected in identity.items():
        if name in _FINGERPRINTS:
            continue
        value = _at(config, IN_CONFIG.get(name, name))
        if value is not _ABSENT and value != expected:
            raise FileError(
                path,
                f"config.{IN_CONFIG.get(name, name)} is {value!r:.80}, identity.json says "
                f"{expected!r:.80}. One of them is damaged; running the training command again "
                "tells which",
            )


def _at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = config.get(name, _ABSENT) if isinstance(config, dict) else _ABSENT
    return config
