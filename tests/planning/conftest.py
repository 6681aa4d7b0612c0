"""A tiny run to plan."""

import json

import pytest
import tiny

from uniadapter_jax.config import base_config, validate


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """A `config.json`, two layers a tower."""
    path = tmp_path_factory.mktemp("backbone") / "config.json"
    path.write_text(json.dumps(tiny.hf_config(2, 2)))
    return str(path)


@pytest.fixture
def config(backbone):
    """Of a run on it."""
    made = base_config()
    made.backbone = f"random:{backbone}"
    made.data.frames = 3
    made.data.words = 6
    made.train.batch_size = 16
    made.eval.batch_size = 16
    return validate(made)
