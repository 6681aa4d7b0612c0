"""Which tokenizer a run has."""

from __future__ import annotations

import pathlib

from ml_collections import ConfigDict

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.tokenizers.clip import Tokenizer
from uniadapter_jax.weights.directory import Backbone
from uniadapter_jax.weights.families import check_tokenizer, family_of


def choose(config: ConfigDict, backbone: Backbone) -> tuple[Tokenizer, str]:
    """(tokenizer, its directory): the config's, else the backbone's, else the records' own.

    Raises `UserError` where there is none, or one that does not fit the backbone.
    """
    family = family_of(backbone.model.config)
    candidates = [config.tokenizer] if config.tokenizer else []
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
        advice = "pass --config.tokenizer=DIR"
        if family.records_tokenizer:
            flag = f"--train-{family.records_tokenizer}=N"
            advice += f", or make one with `python -m uniadapter_jax.prepare ... {flag}`"
        where = f" in {', '.join(candidates)}" if candidates else ""
        raise UserError(f"no tokenizer files{where}; {advice}")
    tokenizer = family.load_tokenizer(present[0])
    check_tokenizer(tokenizer, backbone.model.config, present[0], config.backbone)
    return tokenizer, present[0]
