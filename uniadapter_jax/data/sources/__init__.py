"""Data sets by name. To add one, add a file with a `read` function and a line below."""

from __future__ import annotations

from collections.abc import Callable

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.sources import (
    activitynet,
    didemo,
    easy_vqa,
    karpathy,
    lsmdc,
    manifest,
    msrvtt,
    msrvtt_qa,
    msvd,
    vatex,
    vqa_blip,
    vqav2,
)
from uniadapter_jax.data.sources.item import Item, Source, clean_text

SOURCES: dict[str, Callable[[str], Source]] = {
    "msrvtt": msrvtt.read,
    "msrvtt_7k": msrvtt.read_7k,
    "msrvtt_full": msrvtt.read_full,
    "didemo": didemo.read,
    "activitynet": activitynet.read,
    "msvd": msvd.read,
    "vatex": vatex.read,
    "vatex_clip2video": vatex.read_clip2video,
    "lsmdc": lsmdc.read,
    "karpathy": karpathy.read,
    "msrvtt_qa": msrvtt_qa.read,
    "vqav2": vqav2.read,
    "vqa_blip": vqa_blip.read,
    "easy_vqa": easy_vqa.read,
    "manifest": manifest.read,
}

__all__ = ["SOURCES", "Item", "Source", "read_source"]


def read_source(name: str, path: str) -> Source:
    """Reads and checks the annotations of a data set (unique ids); media files may be missing."""
    source = SOURCES[name](path)
    seen: set[tuple[str, str]] = set()
    for item in source.items:
        if (item.split, item.id) in seen:
            raise UserError(f"--input={path}: {item.split} names {item.id!r} twice")
        seen.add((item.split, item.id))
        if not item.id or item.id != clean_text(item.id):
            raise UserError(f"--input={path}: {item.split} has an id that is no text: {item.id!r}")
    if not source.items:
        raise UserError(f"--input={path}: the annotations ({source.protocol}) name no item")
    return source
