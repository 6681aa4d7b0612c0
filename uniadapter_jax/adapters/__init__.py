"""Methods that adapt a frozen backbone, by name."""

from __future__ import annotations

from uniadapter_jax.adapters import baselines, cross_modal, lora, uniadapter_blip
from uniadapter_jax.adapters.base import AdapterParam, Method
from uniadapter_jax.errors import UserError

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        cross_modal.METHOD,
        uniadapter_blip.METHOD,
        lora.METHOD,
        baselines.FULL,
        baselines.PROJECTION,
        baselines.ZERO_SHOT,
    )
}

__all__ = ["METHODS", "AdapterParam", "Method", "get_method"]


def get_method(name: str) -> Method:
    """The method of that name; raises `UserError` that lists the names."""
    if name not in METHODS:
        raise UserError(f"method {name!r} is not known; known: {', '.join(sorted(METHODS))}")
    return METHODS[name]
