"""What a command line may choose from, as text for `--help`."""

from __future__ import annotations

import textwrap

from uniadapter_jax.adapters.registry import METHODS
from uniadapter_jax.common import packaged
from uniadapter_jax.tasks.registry import TASKS

_OVERRIDES = """
--config takes a name or a file, and arguments behind a colon: msrvtt:method=lora.
--config.FIELD=VALUE overrides any field, such as --config.optimizer.lr=3e-5. All fields with their
defaults are in uniadapter_jax/config/__init__.py, the options of methods and tasks in
docs/methods.md, docs/uniadapter.md and docs/protocols.md."""


def choices() -> str:
    """Configs, tasks and methods, and how fields are overridden."""
    groups = {
        "configs": packaged.names(),
        "tasks": sorted(TASKS),
        "methods": sorted(METHODS),
    }
    lines = [
        textwrap.fill(f"{name}: {', '.join(known)}", 92, subsequent_indent="    ")
        for name, known in groups.items()
    ]
    return "\n".join([*lines, _OVERRIDES])
