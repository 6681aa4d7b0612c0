"""The demo command as a newcomer runs it, smaller; and what its clips are made to show.

Every frame is encoded alone and the frames of a clip are pooled, so their order cannot matter;
which frames there are does, since a text names things of all of them.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import uniadapter_jax
from uniadapter_jax import demo
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.loading.pipeline import clip_batches
from uniadapter_jax.inference import gallery
from uniadapter_jax.runs.assembly import build
from uniadapter_jax.runs.loop import fit
from uniadapter_jax.tasks.retrieval import metrics, scoring
from uniadapter_jax.tasks.retrieval.evaluator import RetrievalEvaluator

pytestmark = pytest.mark.slow  # CI runs the demo from a wheel (scripts/smoke_wheel.sh)
ROOT = pathlib.Path(uniadapter_jax.__file__).parent.parent
SIZE = demo.Size(train=240, test=80, steps=120)

# In every process of the command, workers too: the first import of TensorFlow ends it, whoever asks
# it and whatever they catch. (Looking whether it is installed, as etils does, is no import.)
NO_TENSORFLOW = """
import builtins, importlib, os, sys, traceback

def guarded(function):
    def call(name, *args, **kwargs):
        if name.partition(".")[0] == "tensorflow":
            print("import of", name, file=sys.stderr)
            traceback.print_stack()
            os._exit(3)
        return function(name, *args, **kwargs)
    return call

builtins.__import__ = guarded(builtins.__import__)
importlib.import_module = guarded(importlib.import_module)
"""


def guarded_environment(folder):
    """One device, and the guard in `folder`."""
    (folder / "sitecustomize.py").write_text(NO_TENSORFLOW)
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return {**kept, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, finished process) of the command."""
    workdir, guard = tmp_path_factory.mktemp("demo"), tmp_path_factory.mktemp("guard")
    environment = guarded_environment(guard)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "uniadapter_jax.demo", f"--workdir={workdir}"),
            *(f"--train-clips={SIZE.train}", f"--test-clips={SIZE.test}", f"--steps={SIZE.steps}"),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return workdir, done


@pytest.fixture(scope="module")
def result(finished):
    place = finished[0] / "cross_modal_adapter-seed0"
    return json.loads((place / "result.json").read_text())


@pytest.fixture(scope="module")
def adapted(finished):
    """(experiment, encoder, trained parameters) as the command left them."""
    workdir, _ = finished
    config = demo.sized_config(workdir, "cross_modal_adapter", 0, SIZE)
    experiment = build(config)
    evaluator = RetrievalEvaluator(experiment)
    trained = fit(experiment, workdir / "cross_modal_adapter-seed0", evaluator)
    assert trained.steps_run == 0
    return experiment, evaluator.encoder, trained.trainable


def recall_at_1(experiment, text, frames, mask):
    similarity = experiment.task.similarity(text, frames, mask)
    ranks = metrics.retrieval_ranks(similarity, np.arange(len(text)))
    return metrics.summarize(ranks["t2v"])["R@1"]


def test_the_command_says_what_it_found_and_where(finished, result):
    workdir, done = finished
    assert "zero-shot" in done.stdout and "text finds clip" in done.stdout
    assert f"{result['parameters']['percent']:.2f} %" in done.stdout
    assert f"{result['metrics']['t2v']['R@1']:.1f}" in done.stdout
    assert str(workdir / "cross_modal_adapter-seed0" / "retrieved.png") in done.stdout
    for phase in ("draw clips", "prepare records", "evaluate zero-shot", "adapt and evaluate"):
        assert f"== {phase}" in done.stderr


@pytest.mark.parametrize("way", ["import tensorflow.io", "__import__('tensorflow')"])
def test_the_guard_sees_tensorflow(tmp_path, way):
    command = [sys.executable, "-c", f"try:\n    {way}\nexcept ImportError:\n    pass"]
    environment = guarded_environment(tmp_path)
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 3


def test_the_picture_outlines_right_clips(finished):
    with Image.open(finished[0] / "cross_modal_adapter-seed0" / "retrieved.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels == gallery.RIGHT).all(-1).any()


def test_adapting_helps_with_few_parameters(finished, result):
    before = json.loads((finished[0] / "zero_shot" / "result.json").read_text())
    assert result["metrics"]["t2v"]["R@1"] > 2 * before["metrics"]["t2v"]["R@1"]
    assert result["metrics"]["v2t"]["MnR"] < before["metrics"]["v2t"]["MnR"]
    assert result["parameters"]["percent"] < 5.0


def test_the_middle_frame_alone_is_not_enough(adapted, result):
    experiment, encoder, trainable = adapted
    test = experiment.data.test
    text = encoder.texts(trainable, [captions[0] for captions in test.captions])
    frames, mask = encoder.clips(trainable, test)
    whole = recall_at_1(experiment, text, frames, mask)
    assert whole == pytest.approx(result["metrics"]["t2v"]["R@1"], abs=2.6)  # two of 80 texts
    middle = mask.shape[1] // 2
    alone = recall_at_1(experiment, text, frames[:, middle : middle + 1], mask[:, :1])
    assert alone <= whole / 2


@pytest.fixture(scope="module")
def shuffled(adapted):
    """(texts, mask, frame features, those of shuffled frames, what they should be)."""
    experiment, encoder, trainable = adapted
    test = experiment.data.test.subset(range(32))
    size = experiment.model_config.image_size
    (batch,) = clip_batches(test, experiment.config.data, image_size=size, global_batch=32)
    mask = batch["frame_mask"]
    assert mask.all()
    count = mask.shape[1]
    order = np.random.default_rng(0).permuted(np.tile(np.arange(count), (32, 1)), axis=1)
    assert (order != np.arange(count)).any(1).sum() > 16

    @jax.jit
    def encode(pixels):
        model = experiment.partition.merge(trainable, experiment.partition.frozen)
        return model.encode_frames(pixels)

    rows = np.arange(32)[:, None]
    frames = np.asarray(encode(batch["frames"]))
    other = np.asarray(encode(batch["frames"][rows, order]))
    text = encoder.texts(trainable, [captions[0] for captions in test.captions])
    return text, mask, frames, other, frames[rows, order]


def test_features_of_shuffled_frames_are_shuffled_features(shuffled):
    *_, frames, other, expected = shuffled
    assert np.abs(expected - frames).max() > 1.0
    np.testing.assert_allclose(other, expected, rtol=0, atol=1e-5 * np.abs(frames).max())


@pytest.mark.parametrize("similarity", ["q_score", "mean_pool", "mean_pool_unit"])
def test_shuffling_frames_changes_no_rank(shuffled, similarity):
    text, mask, frames, other, _ = shuffled
    before, after = (
        scoring.score(text, features, mask, similarity=similarity, temperature=5.0)
        for features in (frames, other)
    )
    np.testing.assert_allclose(before, after, rtol=0, atol=1e-5)
    item = np.arange(len(text))
    close = metrics.close_pairs(before, item, rel=1e-4)  # float noise may turn only these
    ranks = [metrics.retrieval_ranks(scores, item) for scores in (before, after)]
    for way in ("t2v", "v2t"):
        moved = np.flatnonzero(ranks[0][way] != ranks[1][way])
        assert set(moved) <= set(close[way][:, 0])


@pytest.mark.parametrize(
    ("family", "tokenizer", "bytes_"),
    [("clip", "tokenizer.json", 3_000_000), ("blip", "vocab.txt", 3_300_000)],
)
def test_what_ships_is_small_and_all_read(family, tokenizer, bytes_):
    place = demo.ASSETS / f"tiny_{family}"
    files = {file.name: file.stat().st_size for file in place.iterdir()}
    assert set(files) == {"config.json", "model.safetensors", tokenizer}
    assert sum(files.values()) <= bytes_


def test_clips_of_another_size_are_not_taken_for_ours(finished):
    with pytest.raises(UserError, match=r"holds 240 \+ 80 clips, not 480 \+ 160"):
        demo.make_clips(finished[0] / "clips", demo.Size(train=480, test=160))


def test_clips_that_are_there_are_kept(finished):
    files = sorted((finished[0] / "clips" / "clips").iterdir())
    times = [file.stat().st_mtime_ns for file in files]
    demo.make_clips(finished[0] / "clips", SIZE)
    assert [file.stat().st_mtime_ns for file in files] == times
