"""Which tokenizer a run has; one that is a name on the hub is pinned to a commit."""

from __future__ import annotations

import pathlib

from ml_collections import ConfigDict

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.tokenizers.clip import Tokenizer
from uniadapter_jax.runs.backbone import pinned
from uniadapter_jax.weights.directory import Backbone
from uniadapter_jax.weights.families import check_tokenizer, family_of
from uniadapter_jax.weights.hub.fetch import located
from uniadapter_jax.weights.needed import tokenizer_of

FIELD = "config.tokenizer"


def choose(config: ConfigDict, backbone: Backbone) -> tuple[ConfigDict, Tokenizer, str]:
    """(config, tokenizer, its directory): the config's, else the backbone's, else the records' own.

    The config that is returned has the commit of a name on the hub.

    Raises `UserError` where there is none, or one that does not fit the backbone.
    """
    family = family_of(backbone.model.config)
    candidates = []
    if config.tokenizer:
        found = located(config.tokenizer, FIELD, tokenizer_of(family))
        config = pinned(config, "tokenizer", found.place)
        candidates.append(found.directory)
    if not config.tokenizer and not backbone.source.startswith("random:"):
        candidates.append(backbone.source)
    trained = family.records_tokenizer and not config.tokenizer
    if trained:
        candidates.append(str(pathlib.Path(config.data.records) / family.records_tokenizer))
    present = [
        c
        for c in candidates
        if any((pathlib.Path(c) / f).is_file() for f in family.tokenizer_files)
    ]
    if not present:
        advice = f"pass --{FIELD}=DIR, or OWNER/NAME of a repository on the hub"
        if family.records_tokenizer:
            flag = f"--train-{family.records_tokenizer}=N"
            advice += f", or make one with `python -m uniadapter_jax.prepare ... {flag}`"
        where = f" in {', '.join(candidates)}" if candidates else ""
        raise UserError(f"no tokenizer files{where}; {advice}")
    tokenizer = family.load_tokenizer(present[0])
    check_tokenizer(tokenizer, backbone.model.config, present[0], config.backbone)
    return config, tokenizer, present[0]
