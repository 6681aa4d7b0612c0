"""What a user can get wrong: one report that names the culprit, status 2, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
import safetensors.numpy
import small_run

from uniadapter_jax.common.digests import DIGESTS_FILE
from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.tokenizers.clip import load_tokenizer, train_tokenizer
from uniadapter_jax.weights.directory import FINGERPRINT_FILE, load_backbone, save_backbone


@pytest.fixture(scope="module")
def backbone(small):
    """A directory of weights in HuggingFace's layout, with the tokenizer."""
    directory = small.root / "weights"
    model = load_backbone(f"random:{small.backbone}").model
    save_backbone(model, directory, small.records / "tokenizer")
    return directory


@pytest.fixture(scope="module")
def stopped(small):
    """The workdir of a run that was stopped on its way."""
    metrics = small.root / "halfway" / "metrics.jsonl"
    flags = ("--workdir=halfway", "--config.train.checkpoint_every=2")
    job = small.fork(*small.arguments(*flags))
    job.await_(lambda: metrics.exists() and metrics.read_text().count("\n") >= 5)
    job.signal(signal.SIGTERM)
    job.end(0)
    return small.root / "halfway"


@pytest.mark.parametrize(
    ("arguments", "report"),
    [
        ([], "--config is missing; for example --config=configs/msrvtt.py"),
        (["--config=nowhere.py"], "--config=nowhere.py: no such file"),
        (["--config=small.py:method=lorra"], "method 'lorra' is not known; known: .*lora"),
        (["--config=small.py:methods=lora"], "'methods=lora' is not one of method=..."),
        (["--config=small.py", "--config.nope=1"], r"--config.nope=1: config has no field 'nope'"),
        (
            ["--config=small.py", "--config.train.batchsize=4"],
            r"config.train has no field 'batchsize'; did you mean 'batch_size'\?",
        ),
        (["--config=small.py", "--config.method.rank=4"], "config.method has no field 'rank'"),
        (["--config=small.py", "--config.seed=x"], "--config.seed=x: invalid literal for int"),
        (["--config=small.py", "--workdirr=x"], "Unknown command line flag 'workdirr'"),
        (["--config=small.py", "extra"], r"unexpected arguments \['extra'\]"),
        (["--config=small.py", "--process-id=0"], "--num-processes and --process-id belong"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "refused",
)
def test_flags(small, arguments, report):
    said = small.refused(*arguments)
    assert re.search(report, said) and said.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "report"),
    [
        (["config.task.similarity=cosine"], "config.task.similarity='cosine': choose one of"),
        (["config.optimizer.recipe=sgd"], "config.optimizer.recipe='sgd': choose one of"),
        (["config.train.batch_size=27"], "config.train.batch_size=27 does not divide over 2"),
        (["config.mesh.data=4"], "config.mesh: data=4, fsdp=1, tensor=1 does not fit 2 devices"),
        (["config.mesh.fsdp=3"], "does not fit 2 devices"),
        (["config.mesh.data=-1", "config.mesh.fsdp=-1"], "at most one is -1"),
        (["config.train.batch_size=64"], "do not fill one global batch of 64"),
        (["config.data.val=26"], "config.data.val=26: cannot carve"),
        (["config.data.records=nowhere"], "no records in .*nowhere .*uniadapter_jax.prepare"),
        (["config.data.test_split=exam"], "has no split 'exam'; it has .*test"),
        (["config.backbone=nowhere"], "config.backbone=nowhere: there is no such directory"),
        (["config.backbone=random:nowhere.json"], "nowhere.json: there is no such file"),
        (["config.tokenizer=nowhere"], "no tokenizer files in nowhere; .*--train-tokenizer"),
        (["config.data.words=40"], "texts of 40 tokens, but this backbone has 16 positions"),
        (["config.method.shared_dim=33"], "method.shared_dim=33 must lie in 0..32"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "refused",
)
def test_settings(small, flags, report):
    arguments = small.arguments("--workdir=never", *(f"--{flag}" for flag in flags))
    assert re.search(report, small.refused(*arguments, devices=2))


def test_all_tensors_that_do_not_fit_are_in_one_report(small, backbone):
    broken = small.root / "broken"
    shutil.copytree(backbone, broken)
    tensors = safetensors.numpy.load_file(broken / "model.safetensors")
    del tensors["text_projection.weight"]
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    tensors[name] = tensors[name][:5].copy()
    tensors["vision_model.extra"] = np.zeros(2, np.float32)
    safetensors.numpy.save_file(tensors, broken / "model.safetensors")
    said = small.refused(*small.arguments(f"--config.backbone={broken}", "--workdir=never"))
    assert "3 problems with its tensors" in said
    for line in ("missing: text_projection.weight", name, "left over: vision_model.extra"):
        assert line in said
    os.remove(broken / "model.safetensors")
    said = small.refused(*small.arguments(f"--config.backbone={broken}", "--workdir=never"))
    assert "neither model.safetensors nor model.safetensors.index.json is there" in said


def test_a_tokenizer_that_does_not_fit(small, backbone):
    large, other = small.root / "large", small.root / "other"
    train_tokenizer(["abcd bcda cdab dabc " * 9], 523, large)
    assert load_tokenizer(large).vocab_size > load_tokenizer(backbone).vocab_size
    said = small.refused(*small.arguments("--config.tokenizer=large", "--workdir=never"))
    assert re.search(r"large has \d+ tokens, the backbone .* embeds \d+", said)
    shutil.copytree(backbone, other)
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 7
    (other / "config.json").write_text(json.dumps(config))
    said = small.refused(*small.arguments(f"--config.backbone={other}", "--workdir=never"))
    assert "other/config.json: has changed since it was written" in said
    for name in ("digests.json", "fingerprint.json"):  # the change is meant
        os.remove(other / name)
    said = small.refused(*small.arguments(f"--config.backbone={other}", "--workdir=never"))
    assert re.search(r"EOS is \d+ in .*, but 7 in the config of", said)


def test_a_workdir_of_another_run_is_left_alone(small, backbone, stopped):
    """Other weights, batch size and method, then other records; every difference, both sides."""
    before = small_run.tree_hash(stopped)
    flags = ("--workdir=halfway", f"--config.backbone={backbone}", "--config.train.batch_size=4")
    said = small.refused(*small.arguments(*flags, "--config.seed=3", method="lora"))
    assert "halfway belongs to another run" in said
    for field in ("backbone", "batch_size", "seed", "method.name", "method.rank", "steps"):
        assert (f"\n  {field}: there " in said) == (field not in ("backbone", "steps"))
    assert "batch_size: there 8, in this run 4" in said and "(backbone: " not in said
    assert small_run.tree_hash(stopped) == before

    config = json.loads(small.backbone.read_text()) | {"projection_dim": 16}
    (small.root / "narrow.json").write_text(json.dumps(config))
    _rename_a_clip(small)
    flags = ("--config.backbone=random:narrow.json", "--config.data.records=renamed")
    said = small.refused(*small.arguments("--workdir=halfway", *flags))
    for field in ("backbone", "data.records"):
        assert re.search(rf"changed \({field}: there \w{{12}}, in this run \w{{12}}\)\n", said)
    assert "Train into another --workdir, or bring back the files" in said
    assert small_run.tree_hash(stopped) == before


def _rename_a_clip(small):
    shutil.copytree(small.records, small.root / "renamed")
    index = small.root / "renamed" / "index-train.jsonl"
    index.write_text(index.read_text().replace("clip3", "clap3"))
    small_run.drop_digests(small.root / "renamed")


def test_a_full_disk_costs_no_checkpoint(small, stopped):
    """A limit on the size of files stands for it: metrics and then checkpoints do not fit."""
    workdir = small.root / "full_disk"
    shutil.copytree(stopped, workdir)
    steps, state = small_run.checkpoint_steps(workdir), small_run.checkpoint(workdir)
    arguments = small.arguments("--workdir=full_disk")
    for limit, every, path in ((5_000, 1000, "tensorboard"), (12_000, 2, "checkpoints")):
        flag = f"--config.train.checkpoint_every={every}"
        said = small.refused(*arguments, flag, largest_file=limit)
        found = re.search(r"error: (\S+): cannot write: file size limit reached", said)
        assert found and found[1].endswith(path), said
        needed, free = re.search(r"needed ([\d,]+) bytes or more, free ([\d,]+)\)", said).groups()
        assert int(needed.replace(",", "")) > 100 and int(free.replace(",", "")) > 1e6
        assert set(steps) <= set(small_run.checkpoint_steps(workdir))
    kept = small_run.checkpoint(workdir, steps[-1])
    assert all(np.array_equal(kept[name], state[name]) for name in state)
    said = small.run("--workdir=full_disk", "--config.train.checkpoint_every=2")
    assert f"resumed from step {steps[-1]}" in said
    assert len(small_run.losses(workdir)) == small_run.STEPS


@pytest.mark.parametrize(
    ("workdir", "reason"),
    [("small.py/run", "Not a directory"), ("small.py", "File exists"), ("/proc/run", "No such")],
)
def test_a_workdir_that_cannot_be_written(small, workdir, reason):
    said = small.refused(*small.arguments(f"--workdir={workdir}"))
    assert f"--workdir={workdir}: cannot write there: {reason}" in said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_errors_of_the_disk_are_told_from_others(tmp_path, number):
    """Also where a library hands on the system's words alone."""
    for error in (OSError(number, os.strerror(number)), RuntimeError(os.strerror(number))):
        with pytest.raises(UserError, match="needed 1,234 bytes or more, free") as caught:
            with disk_errors(tmp_path, 1234):
                raise error
        assert str(tmp_path) in str(caught.value)
    refused = OSError(errno.EACCES, "")
    with pytest.raises(UserError, match=r"no permission.*choose another place") as caught:
        with disk_errors(tmp_path, 1234):
            raise refused
    assert "free" not in str(caught.value) and "make room" not in str(caught.value)
    with pytest.raises(RuntimeError), disk_errors(tmp_path, 1):
        raise RuntimeError("something else")
    with pytest.raises(UserError, match="as it was"), disk_errors(tmp_path, 1):
        raise UserError("as it was") from OSError(number, os.strerror(number))


def test_weights_that_are_not_finite_stop_the_first_step(small, backbone):
    poisoned = small.root / "poisoned"
    shutil.copytree(backbone, poisoned)
    tensors = safetensors.numpy.load_file(poisoned / "model.safetensors")
    tensors["text_model.final_layer_norm.bias"][3] = np.nan
    safetensors.numpy.save_file(tensors, poisoned / "model.safetensors")
    for digests in (FINGERPRINT_FILE, DIGESTS_FILE):
        (poisoned / digests).unlink()
    flags = (f"--config.backbone={poisoned}", "--workdir=poisoned-run")
    said = small.refused(*small.arguments(*flags, method="projection"))
    assert re.search(
        r"step 1: non-finite values in .*text.projection.kernel.*; none is saved", said
    )
    said = small.refused(*small.arguments(*flags[:1], "--workdir=nan", method="zero_shot"))
    assert re.search(r"the features of clip\d+#0 and \d+ more are not finite", said)
    assert not (small.root / "nan" / "result.json").exists()
