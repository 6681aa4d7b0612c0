"""Says which splits a run would look for in vain."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ml_collections import ConfigDict

from uniadapter_jax.data.sources.item import Source

FIELDS = ("train_split", "val_split", "test_split")


def missing_splits(config: ConfigDict, source: Source, found: Collection[str]) -> Iterator[str]:
    """Lines for people on splits that the config names, and that no clip with a text is in.

    Args:
      found: splits that records have clips of.
    """
    speaking = {item.split for item in source.items if item.texts or item.qa}
    if not speaking:
        yield "warning: no clip has a caption or question, which main asks for"
        return
    for field in FIELDS:
        names = {name.strip() for name in str(config.data.get(field) or "").split(",")} - {""}
        asked = f"which main asks for (config.data.{field})"
        for name in sorted(names - set(found)):
            yield f"warning: no clip is in {name!r}, {asked}" + (_advice(name) * source.own)
        for name in sorted(names & set(found) - speaking):
            yield f"warning: no clip in {name!r} has a caption or question, {asked}"


def _advice(name: str) -> str:
    return (
        f'. Put some into a folder {name}/, or write "split": "{name}" in their lines of the '
        "manifest, and run the same command again"
    )
