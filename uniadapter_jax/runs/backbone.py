"""Loads the backbone of a run; one that is a name on the hub is pinned to a commit."""

from __future__ import annotations

import pathlib

from ml_collections import ConfigDict

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import read_json
from uniadapter_jax.tasks.registry import Kind
from uniadapter_jax.weights.directory import Backbone, backbone_family, load_backbone
from uniadapter_jax.weights.families import check_family
from uniadapter_jax.weights.hub.fetch import located
from uniadapter_jax.weights.hub.names import hub_name, parse
from uniadapter_jax.weights.needed import BACKBONE

FIELD = "config.backbone"


def load(config: ConfigDict, kind: Kind) -> tuple[ConfigDict, Backbone]:
    """(The config with the commit of a name on the hub, the backbone).

    Raises `UserError` where its family does not fit the task, before its weights are downloaded.
    """
    if not config.backbone:
        raise UserError(f"{FIELD} is empty: a directory, OWNER/NAME (hub) or random:<config.json>")
    family = backbone_family(config.backbone, FIELD)
    check_family(family, kind.name, kind.families, f"{FIELD}={config.backbone}")
    config = pinned(config, "backbone", located(config.backbone, FIELD, BACKBONE).place)
    options = {name: config.compute[name] for name in family.options}
    return config, load_backbone(config.backbone, seed=config.seed, field=FIELD, **options)


def as_begun(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
    """The config with the commits that the run in the workdir began with, if it names none itself.

    Otherwise a run could not go on once a repository has changed.
    """
    for field in ("backbone", "tokenizer"):
        name = hub_name(config[field])
        if name is None or name.revision:
            continue
        try:
            stored = parse(str(read_json(workdir / "config.json").get(field)))
        except (FileNotFoundError, UserError):
            continue
        if stored is not None and stored.commit and stored.repository == name.repository:
            config = pinned(config, field, str(stored))
    return config


def pinned(config: ConfigDict, field: str, place: str) -> ConfigDict:
    """The config with another place in a field; the config given stays as it is."""
    if place == config[field]:
        return config
    config = config.copy_and_resolve_references()
    config[field] = place
    return config
