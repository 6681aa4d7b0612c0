"""Batches: the same for any number of hosts, workers and threads, from any step on."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import media
import numpy as np
import pytest
from ml_collections import ConfigDict
from shares import interleaved, joined

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data import images
from uniadapter_jax.data.loading import pipeline
from uniadapter_jax.data.loading.frames import FrameReader
from uniadapter_jax.data.loading.pipeline import clip_batches, steps_per_epoch, train_batches
from uniadapter_jax.data.records import open_records
from uniadapter_jax.prepare import prepare

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
CLIPS, CAPTIONS, SIZE = 7, 3, 16


class Letters:
    """A tokenizer whose ids are letters, so a test can read the caption back."""

    def encode(self, texts, length):
        ids = np.zeros((len(texts), length), np.int32)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = [ord(letter) for letter in text][:length]
        return ids

    @staticmethod
    def decode(row):
        return "".join(chr(i) for i in row if i)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Clips of 1 to 7 frames; frame f of clip c is number c + 10 f."""
    root = tmp_path_factory.mktemp("pipeline")
    lines = []
    for c in range(CLIPS):
        media.write_video(root / f"c{c}.mp4", frames=10 * c + 5 if c < 4 else 35, start=c)
        captions = [f"clip {c} caption {j}" for j in range(CAPTIONS)]
        lines.append({"id": f"c{c}", "path": f"c{c}.mp4", "captions": captions})
    manifest = media.write_manifest(root / "manifest.jsonl", lines)
    prepare(media.settings(short_side=SIZE), str(manifest), str(root / "out"))
    return open_records(str(root / "out"), "train")


def config(**changes):
    values = {"frames": 3, "words": 24, "captions": "all", "augment": "none", "workers": 0,
              "threads": 1, "prefetch_mb": 1, "resize": "crop", "sampling": "evenly",
              "preprocess": "none", "max_words": 0, "captions_per_clip": 1}  # fmt: skip
    return ConfigDict({**values, **changes})


def take(records, steps, batch=4, data=None, seed=5, **kwargs):
    batches = train_batches(
        records,
        Letters(),
        data or config(),
        image_size=SIZE,
        global_batch=batch,
        seed=seed,
        **kwargs,
    )
    try:
        return [next(batches) for _ in range(steps)]
    finally:
        batches.close()


def assert_equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])


def test_several_captions_of_each_clip(records):
    (batch,) = take(records, 1, data=config(captions_per_clip=3))
    assert batch["text"].shape == (4, 3, 24) and batch["frames"].shape[0] == 4
    for clip, rows in zip(batch["item"], batch["text"], strict=True):
        said = {Letters.decode(row) for row in rows}
        assert said == {text[:24] for text in records.captions[clip]}


def test_shapes_and_types(records):
    (batch,) = take(records, 1)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "frames": ((4, 3, SIZE, SIZE, 3), "uint8"),
        "frame_mask": ((4, 3), "bool"),
        "text": ((4, 24), "int32"),
        "item": ((4,), "int32"),
    }


def test_frames_are_spread_over_the_clip_and_padded(records):
    for batch in take(records, 5):
        for row, item in enumerate(batch["item"]):
            stored = records.read(int(item)).frames
            chosen = np.linspace(0, len(stored) - 1, min(3, len(stored)), dtype=int)
            mask = batch["frame_mask"][row]
            assert mask.tolist() == [True] * len(chosen) + [False] * (3 - len(chosen))
            assert not batch["frames"][row][~mask].any()
            for place, frame in enumerate(chosen):
                expected = np.zeros((SIZE, SIZE, 3), np.uint8)
                images.center_crop(np.asarray(images.decode_jpeg(stored[frame])), expected)
                np.testing.assert_array_equal(batch["frames"][row, place], expected)


def test_random_frames_vary_in_training_and_not_in_evaluation(records):
    data, alone = config(sampling="random"), config(sampling="evenly")
    whole = take(records, 6, data=data)
    assert_equal(whole[4:], take(records, 2, data=data, start_step=4))
    evenly = take(records, 6, data=alone)
    assert any((a["frames"] != b["frames"]).any() for a, b in zip(whole, evenly, strict=True))
    for a, b in zip(whole, evenly, strict=True):
        np.testing.assert_array_equal(a["text"], b["text"])
        np.testing.assert_array_equal(a["frame_mask"], b["frame_mask"])
    clips = [list(clip_batches(records, d, image_size=SIZE, global_batch=7)) for d in (data, alone)]
    assert_equal(*clips)


def test_squash_and_text_rules_reach_the_batch(records):
    data = config(resize="squash", preprocess="blip", max_words=2)
    (batch,) = take(records, 1, data=data)
    for row, item in enumerate(batch["item"]):
        assert Letters.decode(batch["text"][row]) == f"clip {item}"
        frame = images.decode_jpeg(records.read(int(item)).frames[0])
        expected = np.asarray(frame.resize((SIZE, SIZE), images.BICUBIC))
        np.testing.assert_array_equal(batch["frames"][row, 0], expected)


def test_text_belongs_to_the_clip_and_comes_once_in_an_epoch(records):
    assert steps_per_epoch(records, "all", 4) == CLIPS * CAPTIONS // 4
    texts = []
    for batch in take(records, 5):
        for item, row in zip(batch["item"], batch["text"], strict=True):
            texts.append(Letters.decode(row))
            assert texts[-1] in records.captions[item]
    assert len(set(texts)) == 20


@pytest.mark.parametrize("captions", ["all", "random"])
@pytest.mark.parametrize("augment", ["none", "crop_flip", "crop_flip_color", "blip"])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_out_the_same_global_batch(records, captions, augment, hosts):
    data = config(captions=captions, augment=augment)
    shares = interleaved(4, hosts)
    parts = [take(records, 4, data=data, rows=rows) for rows in shares]
    assert_equal(take(records, 4, data=data), joined(parts, shares))


def test_threads_change_nothing(records):
    data = {"augment": "crop_flip", "captions": "random"}
    alone = take(records, 6, data=config(**data))
    assert_equal(alone, take(records, 6, data=config(threads=4, **data)))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(records, workers):
    """pytest parses no absl flags, so this also shows that none are needed."""
    data = {"augment": "crop_flip", "captions": "random"}
    alone = take(records, 5, data=config(**data), start_step=3)
    shared = take(records, 5, data=config(workers=workers, **data), start_step=3)
    assert_equal(alone, shared)


@pytest.mark.parametrize("start", [1, 5, 12])
def test_resume_at_any_step(records, start):
    data = config(captions="random", augment="crop_flip")
    whole = take(records, start + 3, data=data)
    assert_equal(whole[start:], take(records, 3, data=data, start_step=start))


def test_random_captions_vary_over_epochs(records):
    batches = take(records, 12, batch=7, data=config(captions="random"))
    texts = {Letters.decode(row) for batch in batches for row in batch["text"]}
    assert len(texts) > 1.8 * CLIPS
    for batch in batches:
        assert sorted(batch["item"]) == list(range(CLIPS))


def test_avoid_duplicates(records):
    for batch in take(records, 12, avoid_duplicates=True):
        assert len(set(batch["item"].tolist())) == 4


def test_augmentation_is_one_crop_for_all_frames_of_a_row(records, monkeypatch):
    drawn = []
    original = images.CropFlip.draw.__func__

    def spy(cls, rng):
        drawn.append(original(cls, rng))
        return drawn[-1]

    monkeypatch.setattr(images.CropFlip, "draw", classmethod(spy))
    batches = train_batches(
        records, Letters(), config(augment="crop_flip"), image_size=SIZE, global_batch=4, seed=5
    )
    batch, *later = (next(batches) for _ in range(3))
    batches.close()
    used = []
    for row, item in enumerate(batch["item"]):
        stored = records.read(int(item)).frames
        chosen = np.linspace(0, len(stored) - 1, min(3, len(stored)), dtype=int)
        images_of_row = [np.asarray(images.decode_jpeg(stored[i])) for i in chosen]

        def gives(crop, row=row, images_of_row=images_of_row):
            expected = np.zeros((len(images_of_row), SIZE, SIZE, 3), np.uint8)
            for image, out in zip(images_of_row, expected, strict=True):
                crop(image, out)
            return np.array_equal(batch["frames"][row, : len(expected)], expected)

        used.append(next(i for i, crop in enumerate(drawn) if gives(crop)))
    assert len(set(used)) == len(used)  # batches are made beside each other, in any order
    assert len({crop.position for crop in drawn}) == len(drawn) >= 4 + 4 * len(later)


def test_unused_frames_are_not_decoded(records, monkeypatch):
    calls = []
    original = images.decode_pixels

    def count(*args):
        calls.append(threading.get_ident())  # threads of another test may still be ending
        return original(*args)

    monkeypatch.setattr(images, "decode_pixels", count)
    reader = FrameReader(records, frames=1, image_size=SIZE, threads=1)
    reader.fill(reader.empty(CLIPS), list(range(CLIPS)))
    assert calls.count(threading.get_ident()) == CLIPS


class TestClipBatches:
    def take(self, records, batch=4, data=None, **kwargs):
        return list(
            clip_batches(records, data or config(), image_size=SIZE, global_batch=batch, **kwargs)
        )

    def test_every_clip_once_in_order(self, records):
        batches = self.take(records)
        items = np.concatenate([b["item"] for b in batches])
        valid = np.concatenate([b["valid"] for b in batches])
        assert items[valid].tolist() == list(range(CLIPS))
        assert items[~valid].tolist() == [-1]
        assert valid.tolist() == [True] * 7 + [False]

    def test_padding_is_black_with_one_mask_entry(self, records):
        last = self.take(records)[-1]
        assert not last["frames"][3].any()
        assert last["frame_mask"][3].tolist() == [True, False, False]

    @pytest.mark.parametrize("batch", [1, 7, 8, 20])
    def test_any_batch_size(self, records, batch):
        batches = self.take(records, batch)
        assert all(b["frames"].shape[0] == batch for b in batches)
        assert sum(int(b["valid"].sum()) for b in batches) == CLIPS

    @pytest.mark.parametrize("hosts", [2, 4])
    def test_hosts(self, records, hosts):
        shares = interleaved(4, hosts)
        parts = [self.take(records, rows=rows) for rows in shares]
        assert_equal(self.take(records), joined(parts, shares))

    def test_subset(self, records):
        batches = self.take(records.subset([6, 0]), batch=2)
        np.testing.assert_array_equal(batches[0]["item"], [0, 1])
        whole = self.take(records, batch=7)[0]["frames"]
        np.testing.assert_array_equal(batches[0]["frames"], whole[[6, 0]])


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "kwargs", "message"),
        [
            ({}, {"batch": 22}, "global batch of 22"),
            ({"captions": "random"}, {"batch": 8}, "global batch of 8"),
            ({}, {"rows": np.array([3, 4])}, "row 4 is none of a global batch of 4"),
            ({}, {"rows": np.array([-1])}, "row -1 is none of a global batch"),
            ({}, {"rows": np.array([0, 1, 0])}, r"wanted twice: array\(\[0, 1, 0\]\)"),
            ({}, {"rows": np.array([0.0, 1.0])}, "whole numbers"),
            ({}, {"rows": np.array([], int)}, "at least one"),
            ({"augment": "mixup"}, {}, "augment='mixup' is not one of none, crop_flip, "),
            ({"captions": "best"}, {}, "captions='best'"),
            ({"resize": "fit"}, {}, "resize='fit' is not one of crop, squash"),
            ({"sampling": "fps"}, {}, "sampling='fps' is not one of evenly, uniform, middle, r"),
            ({"preprocess": "clip"}, {}, "preprocess='clip' is not one of none, blip"),
            ({"frames": 0}, {}, "frames should be at least 1"),
        ],
    )
    def test_message(self, records, change, kwargs, message):
        with pytest.raises(UserError, match=message):
            take(records, 1, data=config(**change), **kwargs)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_damaged_records_end_the_run_with_their_place(self, records, tmp_path, workers):
        copy = shutil.copytree(records.root, tmp_path / "copy")
        (path,) = copy.glob("records-train.array_record-*")
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(UserError, match=r"copy: record .* of train is damaged"):
            take(open_records(str(copy), "train"), 3, data=config(workers=workers))


def test_prefetch_is_bounded_in_bytes(records, monkeypatch):
    """At most `prefetch_mb` of batches are made ahead, beside the one in the making."""
    made = []
    original = pipeline.ClipLoader.__call__

    def counting(self, step):
        made.append(step)
        return original(self, step)

    monkeypatch.setattr(pipeline.ClipLoader, "__call__", counting)
    many = records.subset(list(range(CLIPS)) * 20)
    megabytes = 3 * 3 * SIZE * SIZE * 3 * 7 / 2**20  # of three batches
    batches = clip_batches(many, config(prefetch_mb=megabytes), image_size=SIZE, global_batch=7)
    next(batches)
    end = time.monotonic() + 1.0
    while time.monotonic() < end and len(made) < 8:
        time.sleep(0.02)
    assert 3 <= len(made) <= 5
    batches.close()


def test_no_tensorflow_and_no_jax_numpy_is_needed(records):
    """TensorFlow must never be imported; the data code computes with numpy alone."""
    code = f"""
import sys, json
from ml_collections import ConfigDict
from uniadapter_jax.data.records import open_records
from uniadapter_jax.data.loading.pipeline import clip_batches
records = open_records({records.root!r}, "train")
data = ConfigDict({config().to_dict()!r})
n = sum(int(b["valid"].sum()) for b in clip_batches(records, data, image_size=8, global_batch=3))
print(json.dumps([n, "tensorflow" in sys.modules, "uniadapter_jax.common.types" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [CLIPS, False, False]


def test_worker_processes_end_with_a_killed_parent(records):
    code = f"""
import multiprocessing, os, signal
import test_pipeline
from uniadapter_jax.data.records import open_records
from uniadapter_jax.data.loading.pipeline import train_batches
if __name__ == "__main__":
    batches = train_batches(open_records({records.root!r}, "train"), test_pipeline.Letters(),
        test_pipeline.config(workers=2), image_size=8, global_batch=2, seed=0)
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent, ROOT)))}
    script = pathlib.Path(records.root).parent / "killed.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, env=environment
    )
    children = done.stdout.split()
    assert done.returncode == -signal.SIGKILL and len(children) == 2, done.stderr
    end = time.monotonic() + 10
    while any(pathlib.Path(f"/proc/{child}/cmdline").exists() for child in children):
        assert time.monotonic() < end, f"still there: {children}"
        time.sleep(0.02)
