"""The second stage against pair by pair, on any mesh, and what a killed run leaves behind."""

import copy
import functools
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rerank_case
from rerank_case import ITEMS, TEXTS, arrays, clip_source, options
from test_processes import free_port

from uniadapter_jax.adapters.partition import partition
from uniadapter_jax.adapters.registry import AdapterParam
from uniadapter_jax.backbones.memory import Memory
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.tasks.frame_weights import frame_factor
from uniadapter_jax.tasks.matching import reranking_plan as plan
from uniadapter_jax.tasks.matching.pair_scores import Texts
from uniadapter_jax.tasks.matching.reranking import FILL, Reranker
from uniadapter_jax.tasks.retrieval import metrics


@functools.cache
def part():
    return partition(rerank_case.model(), AdapterParam)


def reranker(devices=1, **changes):
    sizes = {"data": -1, "fsdp": 1 if devices == 1 else 2, "tensor": 1}
    return Reranker(part(), meshes.make_mesh(sizes, jax.devices()[:devices]), options(**changes))


@functools.cache
def one_device(frames, weights):
    return reranker(frame_weights=weights)


def other(**changes):
    """The one of a device and images with other options, and the same programs."""
    stage = copy.copy(one_device(1, False))
    stage.options = options(**changes)
    return stage


def rerank(stage, frames=1, batch=4, **arguments):
    ids, mask, features, similarity, clips, present = arrays(frames)
    source = clip_source(clips, present, batch)
    arguments = {"clips": source, "similarity": similarity, **arguments}
    texts = Texts(ids, mask, features)
    return stage.rerank(part().trainable, texts, **arguments, batch=batch)


@jax.jit
def encode(frames):
    model = part().merge(part().trainable, part().frozen)
    states = model.encode_images(frames)
    return states.reshape(1, -1, states.shape[-1]), model.image_features(states[:, 0])


@jax.jit
def match(ids, states, factor):
    model = part().merge(part().trainable, part().frozen)
    fused = model.fuse(model.fusion_ids(ids), None, Memory(states, factor=factor))
    return model.match_logits(fused[0, 0, 0])[1]


@functools.cache
def naive(frames, weights):
    """Logits of all pairs "n m": one text without padding, the frames that a clip has."""
    ids, mask, features, _, clips, present = arrays(frames)
    found = np.zeros((TEXTS, ITEMS))
    for m in range(ITEMS):
        there = np.ones(present[m].sum(), bool)
        states, frame_features = encode(clips[m, : len(there)])
        for n in range(TEXTS):
            factor = jnp.ones((1, 1, states.shape[1]))
            if weights:
                factor = frame_factor(
                    features[None, n, None], frame_features[None], there[None], 17
                )
            found[n, m] = match(ids[n, : mask[n].sum()][None, None], states, factor)
    return found


def expected(logits, similarity, k, beta):
    """The released rule: each query fills its own k best."""
    t2v, v2t = (np.full(similarity.shape, FILL) for _ in range(2))
    for n in range(TEXTS):
        best = np.argsort(-similarity[n], kind="stable")[:k]
        t2v[n, best] = logits[n, best] + beta * similarity[n, best]
    for m in range(ITEMS):
        best = np.argsort(-similarity[:, m], kind="stable")[:k]
        v2t[best, m] = logits[best, m] + beta * similarity[best, m]
    return t2v, v2t


CASES = [
    (1, 1, False),
    pytest.param(8, 1, False, marks=pytest.mark.slow),
    (1, 3, True),
    (8, 3, False),
]


@pytest.mark.parametrize(("devices", "frames", "weights"), CASES)
def test_equals_pair_by_pair(devices, frames, weights):
    stage = one_device(frames, weights) if devices == 1 else reranker(8, frame_weights=weights)
    found = rerank(stage, frames, batch=4 if devices == 1 else 8)
    similarity = arrays(frames)[3]
    for got, wanted in zip(
        found, expected(naive(frames, weights), similarity, 3, 0.5), strict=True
    ):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    ranks = metrics.retrieval_ranks(found[0], np.arange(TEXTS) % ITEMS)
    assert len(ranks["t2v"]) == TEXTS


def test_weights_of_frames_matter():
    assert np.abs(naive(3, True) - naive(3, False)).max() > 1e-3


def test_ids_beyond_the_mask_and_rows_beyond_the_clips_do_not_matter():
    ids, mask, features, similarity, clips, present = arrays()
    ids = np.where(mask, ids, 7)
    source = clip_source(clips, present, 4)
    texts = Texts(ids, mask, features)
    stage = one_device(1, False)
    found = stage.rerank(part().trainable, texts, source, similarity, batch=4)
    for got, wanted in zip(found, rerank(stage), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_two_processes_count_as_one(tmp_path):
    """Theirs differ in the last bits of stage 1, and one would choose other pairs."""
    address, outs = f"127.0.0.1:{free_port()}", [tmp_path / f"{i}.npz" for i in range(2)]
    environment = {
        **os.environ,
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2"),
        "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parents[1], Path(__file__).parent))),
    }
    command = [sys.executable, rerank_case.__file__, address, "2"]
    jobs = [
        subprocess.Popen([*command, str(i), str(out)], env=environment, stderr=subprocess.PIPE)
        for i, out in enumerate(outs)
    ]
    wanted = rerank(one_device(3, True), frames=3)
    for job, out in zip(jobs, outs, strict=True):
        _, said = job.communicate(timeout=120)
        assert job.returncode == 0, said.decode()
        with np.load(out) as found:
            for way, matrix in zip(("t2v", "v2t"), wanted, strict=True):
                np.testing.assert_allclose(found[way], matrix, atol=1e-5)


def test_devices_do_not_talk_while_they_score():
    """But for the logits, which every process gets."""
    stage = reranker(8, frame_weights=True).scorer
    media = jax.eval_shape(
        stage._media,
        part().trainable,
        part().frozen,
        {"frames": jnp.zeros((8, 3, 32, 32, 3), jnp.uint8), "frame_mask": jnp.ones((8, 3), bool)},
    )
    sharded, whole = meshes.batch_sharding(stage.mesh), meshes.replicated(stage.mesh)

    def like(shape, dtype, sharding=sharded):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    media, weights = jax.tree.map(
        lambda x: like(x.shape, x.dtype, whole), (media, (part().trainable, part().frozen))
    )
    group = {
        "place": like((8,), jnp.int32),
        "ids": like((8, 4, 8), jnp.int32),
        "mask": like((8, 4, 8), jnp.bool_),
        "features": like((8, 4, 16), jnp.float32),
    }
    text = stage.score_program.lower(*weights, media, group).compile().as_text()
    talk = [
        line for line in text.splitlines() if "all-" in line.split("(")[0] or "permute(" in line
    ]
    assert len(talk) == 1 and "f32[8,4]" in talk[0], talk


class Killed(Exception):
    pass


def test_a_killed_run_goes_on(tmp_path, capsys):
    stage, seen = one_device(1, False), []
    ids, mask, features, similarity, clips, present = arrays()
    texts = Texts(ids, mask, features)

    def dies(items):
        for batch, _ in zip(clip_source(clips, present, 4)(items), range(2), strict=False):
            yield batch
        raise Killed

    def go(source, similarity=similarity, identity="a"):
        return stage.rerank(
            part().trainable,
            texts,
            source,
            similarity,
            batch=4,
            workdir=tmp_path,
            identity=identity,
        )

    def live():
        return clip_source(clips, present, 4, seen=seen)

    with pytest.raises(Killed):
        go(dies)
    (tmp_path / "reranking" / "items-00000000.npz").write_bytes(b"not a file of ours")
    found = go(live())
    assert seen == [0, 8] and "1 of 3 batches of items are there" in capsys.readouterr().err
    for got, wanted in zip(found, rerank(stage), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert not list(tmp_path.iterdir())

    for change in ({"identity": "b"}, {"similarity": similarity[:, ::-1]}):
        with pytest.raises(Killed):
            go(dies)
        seen.clear()
        go(live(), **change)
        assert seen == [0, 4, 8], change


def test_all_done_needs_no_clips(tmp_path, monkeypatch):
    stage = one_device(1, False)
    monkeypatch.setattr(
        "uniadapter_jax.tasks.matching.reranking_parts.Parts.remove", lambda self: None
    )
    first = rerank(stage, workdir=tmp_path)
    again = rerank(stage, workdir=tmp_path, clips=None)
    for got, wanted in zip(again, first, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_k_beyond_the_gallery_means_all(capsys):
    stage = other(rerank_k=100, rerank_beta=0.0)
    t2v, v2t = rerank(stage)
    np.testing.assert_allclose(t2v, naive(1, False), atol=1e-5)
    np.testing.assert_array_equal(t2v, v2t)
    assert capsys.readouterr().err.count("task.rerank_k=100") == 1


def test_wrong_input_says_so():
    with pytest.raises(UserError, match=r"task\.rerank_k=0"):
        rerank(other(rerank_k=0))
    with pytest.raises(UserError, match=r"task\.rerank_rows=0"):
        rerank(other(rerank_rows=0))
    bad = np.full((TEXTS, ITEMS), np.nan, np.float32)
    with pytest.raises(UserError, match="first stage is not finite"):
        rerank(one_device(1, False), similarity=bad)
    broken = jax.tree.map(lambda x: x * jnp.nan, part().trainable)
    ids, mask, features, similarity, clips, present = arrays()
    with pytest.raises(UserError, match=r"matching score of text \d+ with item 0 and"):
        one_device(1, False).rerank(
            broken, Texts(ids, mask, features), clip_source(clips, present, 4), similarity, batch=4
        )


def test_memory_does_not_grow_with_the_gallery():
    stage, held = one_device(1, False), []
    for items in (8, 32):
        rng = np.random.default_rng(0)
        clips = rng.integers(0, 256, (items, 1, 32, 32, 3), np.uint8)
        batches = clip_source(clips, np.ones((items, 1), bool), 4)
        ids, mask, features, *_ = arrays()
        similarity = rng.random((TEXTS, items)).astype(np.float32)
        sizes = []

        def watched(chosen, batches=batches, sizes=sizes):
            for batch in batches(chosen):
                sizes.append(sum(x.nbytes for x in jax.live_arrays()))
                yield batch

        stage.rerank(part().trainable, Texts(ids, mask, features), watched, similarity, batch=4)
        held.append(max(sizes))
    assert held[0] == held[1]


@pytest.mark.parametrize("k", [1, 2, 5, 40])
def test_pairs_are_those_of_both_directions_each_once(k):
    rng = np.random.default_rng(k)
    similarity = rng.integers(0, 4, (9, 7)).astype(np.float32)  # full of ties
    pairs = plan.choose_pairs(similarity, k)
    t2v = {(n, m) for n in range(9) for m in np.argsort(-similarity[n], kind="stable")[:k]}
    v2t = {(n, m) for m in range(7) for n in np.argsort(-similarity[:, m], kind="stable")[:k]}
    found = list(zip(pairs.text.tolist(), pairs.item.tolist(), strict=True))
    assert len(found) == len(set(found)) and set(found) == t2v | v2t
    assert {pair for pair, own in zip(found, pairs.t2v, strict=True) if own} == t2v
    assert {pair for pair, own in zip(found, pairs.v2t, strict=True) if own} == v2t
    assert found == sorted(found, key=lambda pair: pair[::-1])


def test_large_matrices_are_read_in_chunks(monkeypatch):
    similarity = np.random.default_rng(0).random((20, 30)).astype(np.float32)
    whole = plan.choose_pairs(similarity, 4)
    monkeypatch.setattr(plan, "CHUNK_BYTES", 8 * 30 * 3)
    for a, b in zip(whole, plan.choose_pairs(similarity, 4), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("groups", "texts"), list(itertools.product([1, 4, 8], [1, 3, 16])))
def test_calls_hold_every_pair_once_and_are_long_enough(groups, texts):
    rng = np.random.default_rng(0)
    pairs = plan.choose_pairs(rng.random((50, 12)).astype(np.float32), 7)
    lengths = rng.integers(1, 36, 50).astype(np.int32)
    seen = []
    for start in range(0, 12, 5):
        calls = list(plan.calls(pairs, lengths, plan.Shape(groups, texts), start, start + 5, 35))
        seen += [call.pair[call.pair >= 0] for call in calls]
        for call in calls:
            assert call.place.shape == (groups,) and call.pair.shape == (groups, texts)
            there = call.pair >= 0
            items = np.broadcast_to(call.place[:, None], there.shape)[there] + start
            np.testing.assert_array_equal(items, pairs.item[call.pair[there]])
            np.testing.assert_array_equal(call.text[there], pairs.text[call.pair[there]])
            assert call.length in (8, 16, 24, 32, 35)
            assert lengths[call.text[there]].max() <= call.length
        own = sum(
            -(-int(np.sum(pairs.item == i)) // texts) for i in range(start, min(start + 5, 12))
        )
        assert len(calls) == -(-own // groups)
        assert [call.length for call in calls] == sorted((c.length for c in calls), reverse=True)
    assert sorted(np.concatenate(seen).tolist()) == list(range(len(pairs.text)))


def test_shapes_fill_devices_and_stay_within_the_rows():
    similarity = np.random.default_rng(0).random((400, 32)).astype(np.float32)
    lengths = np.full(400, 12, np.int32)

    def shape(k, tokens=577, rows=64, devices=8):
        pairs = plan.choose_pairs(similarity, k)
        return plan.choose_shape(
            pairs, lengths, tokens=tokens, rows=rows, devices=devices, batch=16
        )

    for k, rows, devices in itertools.product([1, 10, 64], [1, 7, 64], [1, 8]):
        groups, texts = shape(k, rows=rows, devices=devices)
        assert groups % devices == 0 and groups // devices * texts <= rows
    assert shape(64, rows=64).texts == 64 and shape(64, rows=50).texts == 50
    assert shape(10, tokens=10_000).texts > shape(10, tokens=1).texts
    assert shape(1, rows=4096, devices=1).groups <= 16 * 16  # no more than a batch can fill


def test_lengths_count_to_the_last_token():
    mask = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    assert plan.used_lengths(mask).tolist() == [2, 3, 1, 4]


def test_the_benchmark_runs():
    script = Path(__file__).parents[1] / "benchmarks" / "reranking.py"
    command = [sys.executable, script, "--quick", "--only", "speed"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout.splitlines()[-1])["largest_difference"] < 1e-5
