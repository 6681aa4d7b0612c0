"""Tasks by name: a further task is a folder, and a line here."""

from __future__ import annotations

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.tasks.base import Kind
from uniadapter_jax.tasks.matching import kind as matching
from uniadapter_jax.tasks.retrieval import kind as retrieval
from uniadapter_jax.tasks.vqa import kind as vqa

TASKS: dict[str, Kind] = {kind.name: kind for kind in (retrieval.KIND, matching.KIND, vqa.KIND)}

__all__ = ["TASKS", "Kind", "get_task"]


def get_task(name: str) -> Kind:
    """The task of that name; raises `UserError` that lists the names."""
    if not isinstance(name, str) or name not in TASKS:
        raise UserError(f"task {name!r:.80} is not known; known: {', '.join(sorted(TASKS))}")
    return TASKS[name]
