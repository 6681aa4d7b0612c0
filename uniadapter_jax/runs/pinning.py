"""Pins a backbone that is a name on the hub to a commit, so that a run can be told again."""

from __future__ import annotations

import pathlib

from ml_collections import ConfigDict

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import read_json
from uniadapter_jax.weights.hub.fetch import located
from uniadapter_jax.weights.hub.names import hub_name, parse
from uniadapter_jax.weights.needed import BACKBONE

FIELD = "config.backbone"


def pinned(config: ConfigDict) -> ConfigDict:
    """The config with the commit, whose files are then on this machine; else as it is."""
    return _with_backbone(config, located(config.backbone, FIELD, BACKBONE).place)


def as_begun(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
    """The config with the commit that the run in the workdir began with, if it names none itself.

    Otherwise a run could not go on once the repository has changed.
    """
    name = hub_name(config.backbone)
    if name is None or name.revision:
        return config
    try:
        stored = parse(str(read_json(workdir / "config.json").get("backbone")))
    except (FileNotFoundError, UserError):
        return config
    same = stored is not None and stored.commit and stored.repository == name.repository
    return _with_backbone(config, str(stored)) if same else config


def _with_backbone(config: ConfigDict, place: str) -> ConfigDict:
    if place == config.backbone:
        return config
    config = config.copy_and_resolve_references()
    config.backbone = place
    return config
