"""The commands with weights by name: two processes, a hub that moves on, an adapter and back."""

from __future__ import annotations

import json
import pathlib
import socket

import hub_server
import numpy as np
import pytest
from huggingface_hub import constants

import uniadapter_jax
from uniadapter_jax import export
from uniadapter_jax.runs.backbone import as_begun

pytestmark = pytest.mark.slow

TINY = pathlib.Path(uniadapter_jax.__file__).parent / "assets" / "tiny_clip"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server.serving() as server:
        for name, value in {
            **{"HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "cache")},
            **{"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": hub_server.TOKEN},
        }.items():
            monkeypatch.setenv(name, value)
            if hasattr(constants, name := name.replace("HF_ENDPOINT", "ENDPOINT")):
                kind = type(getattr(constants, name))
                monkeypatch.setattr(constants, name, value == "1" if kind is bool else value)
        url = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        server.add("me/tiny", {file.name: file.read_bytes() for file in TINY.iterdir()})
        yield server


def test_from_a_name_to_an_adapter_on_the_hub(hub, small, tmp_path, capsys):
    commit, workdir = hub.refs["me/tiny", "main"], tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    flags = small.arguments(
        f"--workdir={workdir}", "--config.backbone=me/tiny", "--config.train.steps=2"
    )
    jobs = [
        small.start(*flags, address, "--num-processes=2", f"--process-id={i}", devices=1)
        for i in range(2)
    ]
    for job in jobs:
        job.end(0, seconds=300)
    assert sorted(hub.downloads()) == sorted(file.name for file in TINY.iterdir())  # once
    result = json.loads((workdir / "result.json").read_text())
    assert result["backbone"] == result["config"]["backbone"] == f"me/tiny@{commit}"

    files = {file.name: file.read_bytes() for file in TINY.iterdir()}
    hub.add("me/tiny", {**files, "model.safetensors": b"other weights"})
    job = small.start(*flags, "--config.eval.batch_size=16")
    job.end(0, seconds=300)  # goes on with the commit that it began with

    to = tmp_path / "adapter"
    arguments = [f"--workdir={workdir}", f"--to={to}", "--push=me/adapter"]
    assert export.main(arguments) == 0
    said = capsys.readouterr()
    pushed = f"me/adapter@{hub.refs['me/adapter', 'main']}"
    assert f'"{pushed}"' in said.err and hub.url in said.out
    card = (to / "README.md").read_text()
    assert "base_model: me/tiny\n" in card and f'load_model("me/tiny@{commit}"' in card
    config = json.loads((to / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"me/tiny@{commit}"

    back = uniadapter_jax.load_model(config["base_model_name_or_path"], "me/adapter")
    here = uniadapter_jax.load_model(TINY, to)
    text = ["a red disc"]
    np.testing.assert_array_equal(back.encode_text(text), here.encode_text(text))
    assert as_begun(small_config("me/tiny"), workdir).backbone == f"me/tiny@{commit}"
    assert as_begun(small_config("me/tiny@main"), workdir).backbone == "me/tiny@main"


def small_config(backbone):
    config = uniadapter_jax.config.base_config()
    config.backbone = backbone
    return config
