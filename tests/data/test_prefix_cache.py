"""The cache of activations on disk: rows where they belong, marked only when they are complete."""

import dataclasses
import os
import pathlib
import pickle
import shutil
import types

import ml_dtypes
import numpy as np
import pytest
from small_run import child
from test_pipeline import config, records, take  # noqa: F401 (records is a fixture)

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data import prefix_cache
from uniadapter_jax.data.prefix_cache import PrefixCache

KEY = {"backbone": "abc", "entries": {"vision": 8, "text": 8}}


def clips(frame_counts=(2, 5, 1), captions=(1, 3, 2)):
    return types.SimpleNamespace(frame_counts=frame_counts, captions=[["a"] * n for n in captions])


def cache(root, of=None, most=3, dtype="float32", key=KEY):
    made = PrefixCache.of(root, key, of or clips(), most, ((2, 4), (4,)), dtype)
    made.open(key)
    return made


def numbered(table, group):
    begin, end = table.first[group : group + 2]
    size = int(np.prod(table.shape))
    rows = np.arange(begin, end)[:, None] * 10.0 + np.arange(size) / size
    return rows.reshape(-1, *table.shape).astype(np.float32)


def fill(table, groups=None):
    groups = range(table.groups) if groups is None else groups
    table.write(groups, [numbered(table, group) for group in groups])


def test_rows_are_found_again_by_another_process(tmp_path):
    first = cache(tmp_path)
    assert first.frames.first.tolist() == [0, 2, 5, 6]  # at most three of a clip
    assert first.bytes == (6 * 8 + 6 * 4) * 4
    fill(first.frames, [0, 2])
    again = pickle.loads(pickle.dumps(cache(tmp_path)))
    assert again.frames.done().tolist() == [True, False, True]
    fill(again.frames, [1])
    assert first.frames.done().all() and not first.text.done().any()
    wanted = np.concatenate([numbered(first.frames, group) for group in range(3)])
    np.testing.assert_array_equal(first.frames.rows, wanted)


def test_another_key_dtype_or_shape_is_another_cache(tmp_path):
    made = {cache(tmp_path).directory, cache(tmp_path).directory}
    assert len(made) == 1
    made.add(cache(tmp_path, dtype="bfloat16").directory)
    made.add(cache(tmp_path, key={**KEY, "backbone": "abd"}).directory)
    assert len(made) == 3 == len(list(tmp_path.iterdir()))


def test_bfloat16_takes_half(tmp_path):
    whole, half = cache(tmp_path), cache(tmp_path, dtype="bfloat16")
    assert 2 * half.bytes == whole.bytes
    fill(half.text)
    assert half.text.rows.dtype == ml_dtypes.bfloat16
    wanted = np.concatenate([numbered(half.text, group) for group in range(6)])
    np.testing.assert_allclose(half.text.rows.astype(np.float32), wanted, rtol=1e-2)


def test_what_died_while_it_was_written_is_not_marked(tmp_path, monkeypatch):
    made = cache(tmp_path)

    def die(file):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        fill(made.frames)
    assert not made.frames.done().any()


def test_damage_and_a_full_disk_are_told(tmp_path, monkeypatch):
    made = cache(tmp_path)
    os.truncate(made.directory / "text.bin", 5)
    with pytest.raises(UserError, match=r"text.bin: should have 96 bytes, has 5; remove"):
        cache(tmp_path)
    monkeypatch.setattr(prefix_cache, "free_bytes", lambda path: 7)
    with pytest.raises(UserError, match=r"needs 288 bytes and has 7; .*cache_dtype='bfloat16'"):
        cache(tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["frames", "text"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ending", [".bin", ".done"])
def test_a_bit_that_has_changed_is_told(tmp_path, name, dtype, ending):
    table = getattr(cache(tmp_path, dtype=dtype), name)
    fill(table)
    rows = [table.read(group).tobytes() for group in range(table.groups)]
    assert b"".join(rows) == table.rows.tobytes()
    path = table.path.with_suffix(ending)
    for place in np.random.default_rng(0).integers(0, 8 * path.stat().st_size, 20).tolist():
        content = bytearray(path.read_bytes())
        content[place // 8] ^= 1 << place % 8
        spoilt = tmp_path / "spoilt"
        shutil.rmtree(spoilt, ignore_errors=True)
        shutil.copytree(table.path.parent, spoilt)
        (spoilt / path.name).write_bytes(content)
        there = dataclasses.replace(table, path=spoilt / name)
        group = place // 8 // prefix_cache.MARK.itemsize
        if ending == ".bin":
            group = np.searchsorted(table.first, place // 8 // table.row_bytes, "right") - 1
        with pytest.raises(UserError, match=f"{name}.bin: rows .* are damaged; remove"):
            there.read(int(group))
        assert [
            g for g in range(table.groups) if g != group and there.read(g).tobytes() != rows[g]
        ] == []


@pytest.mark.parametrize("together", [1, 2])
def test_batches_hold_the_rows_of_their_clips_and_captions(records, tmp_path, together):  # noqa: F811
    made = cache(tmp_path, records)
    fill(made.frames)
    fill(made.text)
    settings = config(captions_per_clip=together)
    (batch,), (plain,) = (take(records, 1, data=settings, known=x) for x in (made, None))
    for name in ("item", "frame_mask", "text"):
        np.testing.assert_array_equal(batch[name], plain[name])
    assert "frames" not in batch
    for row, item in enumerate(batch["item"].tolist()):
        rows = numbered(made.frames, item)
        np.testing.assert_array_equal(batch["known_frames"][row, : len(rows)], rows)
        assert not batch["known_frames"][row, len(rows) :].any()
        captions = records.captions[item]
        texts = batch["text"][row].reshape(together, -1)
        known = batch["known_text"][row].reshape(together, -1)
        for ids, states in zip(texts, known, strict=True):
            said = "".join(chr(i) for i in ids if i)
            (place,) = [i for i, caption in enumerate(captions) if caption[:24] == said]
            number = made.clip_captions[item] + place
            np.testing.assert_array_equal(states, numbered(made.text, number)[0])


@pytest.mark.slow
def test_a_process_killed_anywhere_leaves_whole_rows(tmp_path):
    """SIGKILL at one call after another; the next process makes what is not marked."""
    here = str(pathlib.Path(__file__).parent)
    for at in (20, 45, 70, 95, 120, None):
        arguments = ("fill_child", [str(tmp_path / "c"), here], "fill", at, str(tmp_path / "end"))
        process = child("killed", "run", arguments)
        process.join(60)
        made = cache(tmp_path / "c")
        for table in (made.frames, made.text):
            for group in np.flatnonzero(table.done()):
                begin, end = table.first[group : group + 2]
                np.testing.assert_array_equal(table.rows[begin:end], numbered(table, group))
        assert (process.exitcode == -9) == (at is not None)
    assert made.frames.done().all() and made.text.done().all()
