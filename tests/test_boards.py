"""What boards get of a run: numbers as they come, and the result once, beside its settings."""

from __future__ import annotations

import importlib.machinery
import json
import os
import struct
import subprocess
import sys
import types

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from uniadapter_jax.common.errors import MachineError, UserError
from uniadapter_jax.config import base_config
from uniadapter_jax.runs.boards import Begun, begun, opened
from uniadapter_jax.runs.tensorboard import TensorBoard
from uniadapter_jax.runs.wandb_board import WandB
from uniadapter_jax.runs.writer import Writer

SETTINGS = {"method.name": "lora", "method.rank": 4, "optimizer.lr": 1e-3, "backbone": "me/clip"}


def events(workdir):
    """All events of a workdir, in TensorBoard's order of the files."""
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])  # then a CRC of 4 bytes, and one at the end
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def numbers(workdir):
    """[(tag, step, number)] of all scalars; in tags @ is _."""
    found = ((v, event.step) for event in events(workdir) for v in event.summary.value)
    return [
        (value.tag, step, pytest.approx(value.simple_value, rel=1e-6))
        for value, step in found
        if not value.tag.startswith("_hparams_")
    ]


def settings(workdir):
    """The settings of each session that the HPARAMS tab would show."""
    for event in events(workdir):
        for value in event.summary.value:
            if value.tag == "_hparams_/session_start_info":
                content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                hparams = content.session_start_info.hparams
                yield {name: getattr(v, v.WhichOneof("kind")) for name, v in hparams.items()}


def test_an_installed_pytorch_is_not_imported(tmp_path):
    (tmp_path / "torch.py").write_text("print('imported')")
    code = "import uniadapter_jax.runs.tensorboard as t; print('done'); import torch"
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["done", "imported"]


def show(workdir, start, final):
    """A process that goes on after a step, and gets to the result if there is one."""
    with opened([TensorBoard()], Begun(workdir, "id", "name", SETTINGS, {})) as boards:
        writer = Writer(workdir, start, boards)
        writer.write("val", start + 1, {"t2v/R@1": 30.0, "note": "text"})
        writer.close()
        if final:
            boards[0].finish(start + 1, final)


def test_tensorboard_has_the_result_and_the_settings_once(tmp_path):
    show(tmp_path, 0, None)
    assert not list(settings(tmp_path)) and numbers(tmp_path) == [("val/t2v/R_1", 1, 30.0)]
    show(tmp_path, 1, {"t2v/R@1": 40.0})
    (earlier,) = (tmp_path / "tensorboard").glob("*.result")
    earlier.rename(earlier.with_name("events.out.tfevents.1000000000.host.1.result"))
    show(tmp_path, 1, {"t2v/R@1": 50.0, "loss": 0.5})
    assert list(settings(tmp_path)) == [SETTINGS]
    result = [entry for entry in numbers(tmp_path) if entry[0].startswith("final/")]
    assert result == [("final/t2v/R_1", 2, 50.0), ("final/loss", 2, 0.5)]


def test_runs_are_compared_by_method_options_and_backbone(tmp_path):
    config = base_config("lora")
    config.name, config.backbone, config.method.rank = "mine", "/home/me/clips/clip", 8
    run = begun(tmp_path / "a", config, {"seed": 0})
    assert run.settings["method.rank"] == 8 and run.settings["backbone"] == "clip"
    assert run.settings["eval.split"] == "test"  # which the final numbers are of
    assert {"method.name", "task.name", "seed", "optimizer.lr", "train.batch_size"} <= {
        *run.settings
    }
    assert all(isinstance(value, bool | float | int | str) for value in run.settings.values())
    assert run.id == begun(tmp_path / "a", config, {"seed": 0}).id
    ids = {begun(tmp_path / w, config, {"seed": s}).id for w in "ab" for s in (0, 1)}
    assert len(ids) == 4 and json.dumps(run.config)


class Recording:
    """A board that notes its calls, and may fail in one."""

    def __init__(self, calls, failing=""):
        self.calls, self.failing = calls, failing

    def __getattr__(self, name):
        def called(*values):
            self.calls.append(name)
            if name == self.failing:
                raise OSError(f"{name} failed")

        return called


def test_boards_are_closed_and_the_first_error_stays(tmp_path):
    run, calls = Begun(tmp_path, "id", "name", {}, {}), []
    with pytest.raises(ValueError, match="mine"):
        with opened([Recording(calls, "close"), Recording(calls)], run):
            raise ValueError("mine")
    assert calls == ["begin", "begin", "close", "close"]


@pytest.fixture
def wandb(monkeypatch):
    """A module in wandb's place, which notes what it is given and keeps summaries of runs."""
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.Error, module.Settings = type("Error", (Exception,), {}), dict
    module.began, module.logged, module.ended, module.summaries = [], [], [], {}

    def init(**options):
        module.began.append(options)
        summary = module.summaries.setdefault(options["id"], {})

        def log(numbers):
            module.logged.append(numbers)
            summary.update(numbers)

        return types.SimpleNamespace(
            summary=summary,
            log=log,
            define_metric=lambda name, step_metric: None,
            finish=lambda exit_code: module.ended.append(exit_code),
        )

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_numbers_config_and_result_and_goes_on_with_the_run(wandb, tmp_path):
    run = Begun(tmp_path, "0123", "mine", SETTINGS, {"seed": 3})
    with pytest.raises(KeyboardInterrupt), opened([WandB("project")], run) as (board,):
        for step in (1, 2):
            board.write("train", step, {"loss": 1.0 / step})
        raise KeyboardInterrupt
    with opened([WandB("project")], run) as (board,):
        board.resume(1)
        for step in (2, 3):
            board.write("train", step, {"loss": 1.0 / step})
        board.write("val", 2, {"t2v/R@1": 30.0})
        board.finish(3, {"t2v/R@1": 40.0})
    assert [options["id"] for options in wandb.began] == ["0123", "0123"]
    first = wandb.began[0]
    assert first["project"] == "project" and first["resume"] == "allow"
    assert first["config"] == {"seed": 3} and first["dir"] == str(tmp_path)
    assert wandb.logged == [
        *({"train/step": step, "train/loss": 1.0 / step} for step in (1, 2, 3)),
        {"val/step": 2, "val/t2v/R@1": 30.0},
    ]
    assert wandb.summaries["0123"]["final/t2v/R@1"] == 40.0 and wandb.ended == [1, 0]


def test_wandb_that_is_missing_or_refuses_says_what_to_do(wandb, tmp_path, monkeypatch):
    def refuse(**options):
        raise wandb.Error("no API key")

    wandb.init = refuse
    with pytest.raises(MachineError, match=r"--wandb=mine: no API key\. Run `wandb login`"):
        WandB("mine").begin(Begun(tmp_path, "id", "name", {}, {}))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--wandb=mine: .* pip install 'uniadapter_jax\[wandb\]'"):
        WandB("mine")
