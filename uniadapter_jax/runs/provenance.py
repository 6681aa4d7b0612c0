"""The code and settings of a run, and the check that all its processes have the same."""

from __future__ import annotations

import hashlib
import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

from ml_collections import ConfigDict

import uniadapter_jax
from uniadapter_jax.common.errors import UserError

_ROOT = pathlib.Path(uniadapter_jax.__file__).parent
# Fields that may differ between processes: paths, and how much of a machine is used.
_OWN_FIELDS = (
    *("name", "backbone", "tokenizer", "data.records", "data.workers", "data.threads"),
    *("data.prefetch_mb", "train.log_every"),
)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow", "av")


def versions() -> dict[str, str]:
    """{package: version} of the packages that decide what a run computes."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "uniadapter_jax": uniadapter_jax.__version__,
        "python": platform.python_version(),
        **packages,
    }


def revision() -> str | None:
    """The git revision of the code, where it runs from a checkout."""
    command = ["git", "-C", str(_ROOT), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def code_digest() -> str:
    """SHA-256 of this package's source files; unlike a revision, it also shows local edits."""
    digest = hashlib.sha256()
    for path in sorted(_ROOT.rglob("*.py")):
        digest.update(f"{path.relative_to(_ROOT)}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def flat_fields(config: ConfigDict, prefix: str = "") -> dict[str, str]:
    """Every field that has to be the same on all processes, as text."""
    fields: dict[str, str] = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        if isinstance(value, ConfigDict):
            fields |= flat_fields(value, f"{path}.")
        elif path not in _OWN_FIELDS:
            fields[f"config.{path}"] = repr(value)
    return fields


def check_agreement(sides: list[dict[str, Any]]) -> None:
    """Raises unless all processes have the same values; lists every difference."""
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
