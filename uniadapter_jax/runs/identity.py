"""What a run depends on, field by field: which command is the same run, and which another.

Every field of a config is in one of three places.

- training: all that a training step, or the choice of a checkpoint, reads. A workdir is resumed by
  a command that agrees in all of it.
- evaluation: what only the measuring of a trained run reads. It may change; the run is measured
  again, and both results stay. With `selection` val or test the choice of the checkpoint has read
  it too, so there it belongs to training.
- `FREE`: neither, and why.

A field that nobody has thought about is in training.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.config import base_config
from uniadapter_jax.config.rules import leaves
from uniadapter_jax.runs.files import IN_CONFIG
from uniadapter_jax.tasks.registry import TASKS, Kind, get_task

VERSION = 2  # of the names below; 1 had no version, no compute.dropout and .drop_path
RENAMED = {path: name for name, path in IN_CONFIG.items()}
_ROUNDING = "the same numbers up to rounding; what changes is time and memory"
FREE: Mapping[str, str] = {
    "name": "names the default workdir",
    "backbone": "a path; the fingerprint of what lies there counts",
    "tokenizer": "a path; the fingerprint of what lies there counts",
    "data.records": "a path; the fingerprint of what lies there counts",
    "data.train_split": "the fingerprint of its records counts",
    "data.test_split": "the fingerprint of its records counts",
    "data.workers": "how fast batches come; their content is the same",
    "data.threads": "how fast batches come; their content is the same",
    "data.prefetch_mb": "how fast batches come; their content is the same",
    "data.prepare.source": "read by prepare; the fingerprint of the records counts",
    "data.prepare.sampling": "read by prepare; the fingerprint of the records counts",
    "data.prepare.fps": "read by prepare; the fingerprint of the records counts",
    "data.prepare.frames": "read by prepare; the fingerprint of the records counts",
    "data.prepare.short_side": "read by prepare; the fingerprint of the records counts",
    "data.prepare.quality": "read by prepare; the fingerprint of the records counts",
    "data.prepare.max_bad_share": "read by prepare; the fingerprint of the records counts",
    "compute.remat": _ROUNDING,
    "compute.frame_chunks": _ROUNDING,
    "train.accumulation": _ROUNDING,
    "train.epochs": "the number of all steps counts",
    "train.steps": "the number of all steps counts",
    "train.log_every": "what is shown on the way",
    "train.checkpoint_every": "what is kept on the way; selection looks after each epoch",
    "train.keep": "what is kept on the way; the best is kept in any case",
    "eval.batch_size": _ROUNDING,
    "mesh.data": _ROUNDING,
    "mesh.fsdp": _ROUNDING,
    "mesh.tensor": _ROUNDING,
    "mesh.weights": _ROUNDING,
    "task.rerank_rows": _ROUNDING,
    "task.answers": "a path; the digest of the list counts",
}
# Not in the config: what lies at its paths, and what follows from it.
_TRAINING_FACTS = ("backbone", "tokenizer", "method.version", "data.records", "steps")
_EVALUATION_FACTS = ("data.test", "answers")


def training(config: ConfigDict, facts: Mapping[str, Any]) -> dict[str, Any]:
    """{name: value} of all that training depends on; `config` is validated.

    facts: backbone, tokenizer, data.records, data.validation, data.test (fingerprints), answers
      (of the list that rank mode chooses from), method.version, steps.
    """
    kind = get_task(config.task.name)
    fields = {
        RENAMED.get(path, path): value
        for path, value in leaves(config)
        if path not in FREE and not _is_evaluation(path, kind)
    }
    found = {"version": VERSION, **{name: facts[name] for name in _TRAINING_FACTS}, **fields}
    if config.selection == "val":
        found["data.validation"] = facts["data.validation"]
    if config.selection != "last":
        measured = evaluation(config, facts)
        if config.selection == "val":
            del measured["data.test"]
        found |= measured
    return _as_read(found)


def evaluation(config: ConfigDict, facts: Mapping[str, Any]) -> dict[str, Any]:
    """{name: value} of what only the measuring of a trained run depends on; see `training`."""
    kind = get_task(config.task.name)
    fields = {path: value for path, value in leaves(config) if _is_evaluation(path, kind)}
    return _as_read({**{name: facts[name] for name in _EVALUATION_FACTS}, **fields})


def _is_evaluation(path: str, kind: Kind) -> bool:
    section, _, name = path.partition(".")
    return section == "task" and name in kind.evaluation and path not in FREE


def _as_read(value: dict[str, Any]) -> dict[str, Any]:
    """As it will be read back: tuples become lists."""
    return json.loads(json.dumps(value))


def differences(
    saved: Mapping[str, Any],
    mine: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
) -> dict[str, tuple[Any, Any]]:
    """{name: (there, here)} of what differs between two identities of training.

    What `saved` lacks, because it is older than the field, is what the config beside it says, else
    the field's default. A fact that is in no config, such as a digest, is then taken as equal.
    """
    older = saved.get("version") != mine.get("version")
    known = {**mine, **_older_values(mine, config or {})} if older else {}
    there = {name: saved.get(name, known.get(name)) for name in {*saved, *mine}}
    ignored = {*FREE, *_EVALUATION_FACTS, *_measured_by(saved)} - set(mine) | {"version"}
    return {
        name: (there[name], mine.get(name))
        for name in sorted(there)
        if name not in ignored and there[name] != mine.get(name)
    }


def _measured_by(identity: Mapping[str, Any]) -> set[str]:
    """The fields of its task that only evaluation reads."""
    kind = TASKS.get(str(identity.get("task.name")))
    return {f"task.{name}" for name in kind.evaluation} if kind else set()


def _older_values(mine: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """{name: value} of the fields of `mine` as a config of its time, or the defaults, have them."""
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
    """Raises `UserError` with every field in which what lies in `where` is not this run's.

    config: of the run that lies there, for fields that `saved` lacks; see `differences`.
    """
    found = differences(saved, mine, config)
    if not found:
        return
    lines = [f"\n  {name}: there {a!r}, in this run {b!r}" for name, (a, b) in found.items()]
    why = ""
    if set(found) <= {*_EVALUATION_FACTS, *_measured_by(mine)}:
        why = (
            "\nOnly the evaluation reads that, but config.selection="
            f"{mine['selection']!r} chose the checkpoint by it"
        )
    raise UserError(
        f"{where} belongs to another run:{''.join(lines)}{why}\n"
        "Nothing was changed. Choose another --workdir, or restore these settings"
    )


def digest(*parts: Mapping[str, Any]) -> str:
    """SHA-256 of identities."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
