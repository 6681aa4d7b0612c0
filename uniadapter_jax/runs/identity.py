"""The identity of a run: the fields on which it depends, by which commands are told apart.

Every field of a config belongs to one of three sets.

- training: the fields that a training step, or the choice of a checkpoint, reads. A command resumes
  a workdir only if it agrees in all of them.
- evaluation: the fields that only the evaluation of a trained run reads. They may change; the run
  is evaluated again, and both results stay. With `selection` val or test the choice of the
  checkpoint reads them too, so then they belong to training.
- `FREE`: fields in neither set, each with the reason.

A new field belongs to training unless it is put into another set.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.config import base_config
from uniadapter_jax.config.rules import leaves
from uniadapter_jax.runs.files import IN_CONFIG
from uniadapter_jax.tasks.registry import TASKS, Kind, get_task

VERSION = 2  # of the names below; 1 had no version, no compute.dropout and .drop_path
RENAMED = {path: name for name, path in IN_CONFIG.items()}
_ROUNDING = "the same numbers up to rounding; only time and memory change"
FREE: Mapping[str, str] = {
    "name": "names the default workdir",
    "backbone": "a path; the fingerprint of the files there counts",
    "tokenizer": "a path; the fingerprint of the files there counts",
    "init_from": "a path; the fingerprint of the adapter there counts",
    "data.records": "a path; the fingerprint of the files there counts",
    "data.train_split": "the fingerprint of its records counts",
    "data.val_split": "the fingerprint of its records counts",
    "data.test_split": "the fingerprint of its records counts",
    "data.cache_dir": "a path; what is there follows from the other fields",
    "data.workers": "how fast batches come; their content is the same",
    "data.threads": "how fast batches come; their content is the same",
    "data.prefetch_mb": "how fast batches come; their content is the same",
    "data.prepare.source": "read by prepare; the fingerprint of the records counts",
    "data.prepare.sampling": "read by prepare; the fingerprint of the records counts",
    "data.prepare.fps": "read by prepare; the fingerprint of the records counts",
    "data.prepare.frames": "read by prepare; the fingerprint of the records counts",
    "data.prepare.short_side": "read by prepare; the fingerprint of the records counts",
    "data.prepare.quality": "read by prepare; the fingerprint of the records counts",
    "data.prepare.window": "read by prepare; the fingerprint of the records counts",
    "data.prepare.stride": "read by prepare; the fingerprint of the records counts",
    "data.prepare.max_bad_share": "read by prepare; the fingerprint of the records counts",
    "compute.remat": _ROUNDING,
    "compute.attention": _ROUNDING,
    "compute.frame_chunks": _ROUNDING,
    "train.accumulation": _ROUNDING,
    "train.epochs": "the number of all steps counts",
    "train.steps": "the number of all steps counts",
    "train.log_every": "which progress is shown",
    "train.checkpoint_every": "which checkpoints are kept; what is measured is kept in any case",
    "train.keep": "which checkpoints are kept; the best is kept in any case",
    "eval.batch_size": _ROUNDING,
    "mesh.data": _ROUNDING,
    "mesh.fsdp": _ROUNDING,
    "mesh.tensor": _ROUNDING,
    "mesh.weights": _ROUNDING,
    "task.rerank_rows": _ROUNDING,
    "task.answers": "a path; the digest of the list counts",
}
# Values that are not in the config: fingerprints of its files, and values that follow from it.
_TRAINING_FACTS = ("backbone", "tokenizer", "method.version", "data.records", "steps")
# What people call the files behind a digest.
_FILES = {
    "backbone": "the backbone's weights",
    "tokenizer": "the tokenizer",
    "initial": "the adapter to begin with",
    "data.records": "the records",
    "data.validation": "the records that choose the checkpoint",
    "data.test": "the records that are tested on",
}
_EVALUATION_FACTS = ("data.test", "answers")
# Fields of any task that only evaluation reads, and that choose no checkpoint, with their defaults.
_MEASURED = {"eval.also": "", "eval.split": "test"}


def training(config: ConfigDict, facts: Mapping[str, Any]) -> dict[str, Any]:
    """{name: value} of everything that training depends on; `config` is validated.

    facts: backbone, tokenizer, data.records, data.validation, data.test (fingerprints), answers
      (of the list that rank mode chooses from), method.version, steps.
    """
    kind = get_task(config.task.name)
    fields = {
        RENAMED.get(path, path): value
        for path, value in leaves(config)
        if path not in FREE and not _is_evaluation(path, kind)
    }
    identity = {"version": VERSION, **{name: facts[name] for name in _TRAINING_FACTS}, **fields}
    if facts.get("initial") is not None:
        identity["initial"] = facts["initial"]
    if config.selection == "val":
        identity["data.validation"] = facts["data.validation"]
    if config.selection != "last":
        measured = evaluation(config, facts)
        measured = {name: value for name, value in measured.items() if name not in _MEASURED}
        if config.selection == "val":
            del measured["data.test"]
        identity |= measured
    return _as_read(identity)


def evaluation(config: ConfigDict, facts: Mapping[str, Any]) -> dict[str, Any]:
    """{name: value} of everything that only the evaluation depends on; see `training`."""
    kind = get_task(config.task.name)
    fields = {path: value for path, value in leaves(config) if _is_evaluation(path, kind)}
    for name, usual in _MEASURED.items():  # results that are older than the fields lack them
        if fields[name] == usual:
            del fields[name]
    return _as_read({**{name: facts[name] for name in _EVALUATION_FACTS}, **fields})


def _is_evaluation(path: str, kind: Kind) -> bool:
    section, _, name = path.partition(".")
    if path in _MEASURED:
        return True
    return section == "task" and name in kind.evaluation and path not in FREE


def _as_read(value: dict[str, Any]) -> dict[str, Any]:
    """The value as it will be read back: tuples become lists."""
    return json.loads(json.dumps(value))


def differences(
    saved: Mapping[str, Any],
    mine: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
) -> dict[str, tuple[Any, Any]]:
    """{name: (saved, mine)} of the values that differ between two identities of training.

    A field that `saved` lacks is newer than it, such as a method's new option, and has the value of
    `config`, the saved run's, else its default. Of another version, a fact that is in no config,
    such as a digest, counts as equal.
    """
    known = _older_values(mine, config or {})
    if saved.get("version") != mine.get("version"):
        known = {**mine, **known}
    else:  # options of another method or task are not newer ones
        others = [s for s in ("method", "task") if saved.get(f"{s}.name") != mine.get(f"{s}.name")]
        known = {n: value for n, value in known.items() if n.partition(".")[0] not in others}
    theirs = {name: saved.get(name, known.get(name)) for name in {*saved, *mine}}
    ignored = {*FREE, *_EVALUATION_FACTS, *_measured_by(saved)} - set(mine) | {"version"}
    return {
        name: (theirs[name], mine.get(name))
        for name in sorted(theirs)
        if name not in ignored and theirs[name] != mine.get(name)
    }


def _measured_by(identity: Mapping[str, Any]) -> set[str]:
    """The fields of the identity's task that only evaluation reads."""
    kind = TASKS.get(str(identity.get("task.name")))
    return {f"task.{name}" for name in kind.evaluation} if kind else set()


def _older_values(mine: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """{name: value} of the fields of `mine`, from an older config or else the defaults."""
    if not {"method.name", "task.name"} <= set(mine):
        return {}
    known = {}
    for path, default in leaves(base_config(mine["method.name"], mine["task.name"])):
        value: Any = config
        for name in path.split("."):
            value = value.get(name, default) if isinstance(value, Mapping) else default
        known[RENAMED.get(path, path)] = value
    return _as_read(known)


def check_identity(
    where: pathlib.Path,
    saved: Mapping[str, Any],
    mine: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
) -> None:
    """Raises `UserError` with every field in which the run in `where` differs from this run.

    config: config of the run in `where`, for fields that `saved` lacks; see `differences`.
    """
    differing = differences(saved, mine, config)
    if not differing:
        return
    lines = [f"\n  {_difference(name, a, b)}" for name, (a, b) in differing.items()]
    why = ""
    if set(differing) <= {*_EVALUATION_FACTS, *_measured_by(mine)}:
        why = (
            "\nOnly the evaluation reads that, but config.selection="
            f"{mine['selection']!r} chose the checkpoint by it"
        )
    raise UserError(
        f"{where} belongs to another run:{''.join(lines)}{why}\n"
        f"Nothing was changed. {_advice(differing)}"
    )


def _difference(name: str, there: Any, here: Any) -> str:
    """One difference in a line; of files in words, with the beginnings of their digests."""
    if name in _FILES:
        sides = f"there {str(there)[:12]}, in this run {str(here)[:12]}"
        return f"{_FILES[name]} changed ({name}: {sides})"
    return f"{name}: there {there!r}, in this run {here!r}"


def _advice(differing: Collection[str]) -> str:
    if set(differing) <= set(_FILES):
        return "Train into another --workdir, or bring back the files it was trained on"
    return "Choose another --workdir, or restore these settings"


def digest(*parts: Mapping[str, Any]) -> str:
    """The SHA-256 of some identities."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
