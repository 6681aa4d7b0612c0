"""Methods that adapt a frozen backbone, by name: a further one is a file, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uniadapter_jax.adapters import (
    adaptformer,
    baselines,
    bitfit,
    clip_adapter,
    coop,
    cross_modal,
    dora,
    houlsby,
    ia3,
    layer_norm,
    lora,
    lora_shared,
    maple,
    partial,
    ssf,
    tempme,
    uniadapter_blip,
    unipt,
    vera,
    vl_prompt,
    vpt_deep,
)
from uniadapter_jax.adapters.base import AdapterParam, Method
from uniadapter_jax.adapters.from_layer import with_from_layer
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.ranges import check_choice, check_range, check_type

METHODS: dict[str, Method] = {
    method.name: with_from_layer(method) if method.layered else method
    for method in (
        cross_modal.METHOD,
        uniadapter_blip.METHOD,
        lora.METHOD,
        bitfit.METHOD,
        layer_norm.METHOD,
        houlsby.METHOD,
        ia3.METHOD,
        vpt_deep.METHOD,
        partial.METHOD,
        adaptformer.METHOD,
        ssf.METHOD,
        dora.METHOD,
        vera.METHOD,
        lora_shared.METHOD,
        tempme.METHOD,
        clip_adapter.METHOD,
        unipt.METHOD,
        coop.METHOD,
        vl_prompt.METHOD,
        maple.METHOD,
        baselines.FULL,
        baselines.PROJECTION,
        baselines.ZERO_SHOT,
    )
}

__all__ = ["METHODS", "AdapterParam", "Method", "check_options", "get_method"]


def check_options(where: str, method: Method, options: Mapping[str, Any]) -> None:
    """Raises `UserError`, `where` in front, unless these are options that the method can have.

    They may be fewer than there are: an earlier version may have known fewer.
    """
    if set(options) - set(method.options):
        raise UserError(
            f"{where} are {sorted(options)!s:.300}, those of {method.name} are "
            f"{sorted(method.options)}"
        )
    for name, value in options.items():
        path = f"{where}.{name}"
        check_type(path, value, type(method.options[name]))
        if name in method.ranges:
            check_range(path, value, method.ranges[name])
        if name in method.choices:
            check_choice(path, value, method.choices[name])


def get_method(name: str) -> Method:
    """The method of that name; raises `UserError` that lists the names."""
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(f"method {name!r:.80} is not known; known: {', '.join(sorted(METHODS))}")
    return METHODS[name]
