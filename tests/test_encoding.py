"""Texts of an evaluation are cut to what they need, and masks follow from the records."""

from __future__ import annotations

import runpy
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import EOS, hf_config

from uniadapter_jax.adapters.registry import METHODS, get_method
from uniadapter_jax.backbones.clip import CLIPConfig
from uniadapter_jax.parallel.mesh import make_mesh
from uniadapter_jax.runs.assembly import build
from uniadapter_jax.tasks import needed
from uniadapter_jax.tasks.encoding import Encoder
from uniadapter_jax.tasks.needed import frame_masks, text_batches, used_lengths


def test_batches_of_texts_are_cut_where_that_pays():
    """One length for a few batches; three for many, and each text in one batch."""
    used = np.array([9, 3, 4] * 20)
    (found,) = {length for _, length in text_batches(used, longest=32, size=16)}
    assert found == 16, "the longest, rounded up"
    assert [rows.tolist() for rows, _ in text_batches(used[:5], 32, 4)] == [[0, 1, 2, 3], [4]]
    many = np.array([30, 3, 4] * 100)
    batches = list(text_batches(many, longest=77, size=8))
    assert {length for _, length in batches} == {16, 32}, "none needs 24"
    assert all(many[rows].max() <= length for rows, length in batches)
    assert sorted(np.concatenate([rows for rows, _ in batches])) == list(range(300))
    assert sum(length == 32 for _, length in batches) <= 100 // 8 + 1
    assert [length for _, length in text_batches(np.array([20]), 20, 4)] == [20], "never longer"


def test_a_method_that_reads_padding_sees_all_of_it():
    backbone = CLIPConfig.from_huggingface(hf_config())
    ids = np.array([[1, EOS, 0, 0], [1, 2, EOS, 0]])
    lengths = [used_lengths(METHODS[name], backbone, ids) for name in ("lora", "vl_prompt")]
    assert [found.tolist() for found in lengths] == [[2, 3], [4, 4]]


def made(small, task, method="zero_shot"):
    config = runpy.run_path(str(small.config))["get_config"](f"method={method},task={task}")
    few = {"tokens", "prefix", "suffix"}.intersection(config.method)
    config.method.update(dict.fromkeys(few, 2))  # the backbone has few positions
    return build(config)


class Sums(Encoder):
    """The sum of a text's ids for its features."""

    def __init__(self, **subject):
        self.subject, self._text, self.lengths = SimpleNamespace(**subject), None, set()

    def _call(self, function, trainable, host, size):
        self.lengths.add(host["text"].shape[1])
        return jnp.asarray(host["text"].sum(1, keepdims=True))


def test_each_text_has_the_features_of_its_cut():
    used = np.random.default_rng(0).integers(2, 30, 400)
    ids = np.arange(32) < used[:, None]
    ids = np.where(ids, np.arange(400)[:, None] % EOS, 0)
    ids[np.arange(400), used - 1] = EOS
    encoder = Sums(
        config=SimpleNamespace(method=SimpleNamespace(name="lora")),
        model_config=CLIPConfig.from_huggingface(hf_config()),
        mesh=make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1]),
        eval_batch=1,
    )
    np.testing.assert_array_equal(encoder.ids(None, ids)[:, 0], ids.sum(1))
    assert encoder.lengths == {16, 24, 32}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["retrieval", "matching"])
def test_features_of_cut_texts_are_equal(small, task, monkeypatch):
    experiment = made(small, task)
    encoder = Encoder(experiment)
    ids = encoder.text_ids(["red", "a box", "bar"])
    assert experiment.model_config.used_lengths(ids).max() < ids.shape[1]
    trainable = experiment.partition.trainable
    monkeypatch.setattr(needed, "LENGTHS", 1)
    cut = encoder.ids(trainable, ids)
    monkeypatch.setattr(needed, "LENGTHS", 1000)
    np.testing.assert_allclose(cut, encoder.ids(trainable, ids), rtol=0, atol=2e-6)


def test_frames_beyond_a_clip_are_masked():
    masks = frame_masks(SimpleNamespace(frame_counts=[1, 5, 2]), 2)
    assert masks.tolist() == [[True, False], [True, True], [True, True]]


@pytest.mark.slow
def test_masks_are_those_that_are_loaded(small):
    experiment = made(small, "retrieval")
    test = experiment.data.test
    loaded = np.concatenate([batch["frame_mask"] for batch in experiment.clip_batches(test)])
    expected = frame_masks(test, experiment.config.data.frames)
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(loaded[: len(test)], expected)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_no_method_reads_what_is_cut(small, method):
    experiment = made(small, "retrieval", method)
    encoder, part = Encoder(experiment), experiment.partition
    noise = np.random.default_rng(0)
    trainable = jax.tree.map(
        lambda x: x + noise.normal(0, 0.1, x.shape).astype(np.float32), part.trainable
    )
    ids = encoder.text_ids(["red", "a box"])
    longest = int(encoder.used_lengths(ids).max())
    assert (longest == ids.shape[1]) == get_method(method).reads_padding
    function = jax.jit(
        lambda t, ids: experiment.task.encode_texts(part.merge(t, part.frozen), {"text": ids})
    )
    np.testing.assert_allclose(
        function(trainable, ids[:, :longest]), function(trainable, ids), rtol=1e-5, atol=2e-6
    )
