"""Says which splits a run would look for in vain."""

from __future__ import annotations

from collections.abc import Collection

from ml_collections import ConfigDict

FIELDS = ("train_split", "val_split", "test_split")


def missing_splits(config: ConfigDict, found: Collection[str], *, own: bool) -> list[str]:
    """Lines for people on splits that the config names and that no clip is in.

    own: whether users say themselves which split a clip is in.
    """
    lines = []
    for field in FIELDS:
        names = str(config.data.get(field) or "").split(",")
        for name in sorted(set(filter(None, map(str.strip, names))) - set(found)):
            line = f"warning: no clip is in {name!r}, which main asks for (config.data.{field})"
            if own:
                line += f'. Put some into a folder {name}/, or write "split": "{name}" in their '
                line += "lines of the manifest, and run the same command again"
            lines.append(line)
    return lines
