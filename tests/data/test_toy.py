"""The generated world: the same twice, captions that name what is seen, test sets unseen."""

from __future__ import annotations

import itertools
import json

import av
import numpy as np
import pytest
from PIL import Image

from uniadapter_jax.data.preparation import toy

RARE = {rare: word for word, (rare, _) in {**toy.COLOURS, **toy.SHAPES}.items()}


def things_named(caption: str) -> frozenset[tuple[str, str]]:
    words = [RARE.get(word, word) for word in caption.replace(",", "").split()]
    return frozenset(
        (colour, shape) for colour, shape in itertools.pairwise(words) if colour in toy.COLOURS
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("clips")
    assert list(toy.write_clips(str(directory), train=20, test=10)) == list(range(1, 31))
    return directory


@pytest.fixture(scope="module")
def lines(folder):
    return read_manifest(folder)


def read_manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_the_same_arguments_give_the_same_bytes(folder, tmp_path):
    list(toy.write_clips(str(tmp_path), train=20, test=10))
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 30 + 1
    for path in files:
        assert (tmp_path / path).read_bytes() == (folder / path).read_bytes(), path


def test_another_seed_gives_other_clips(folder, tmp_path):
    list(toy.write_clips(str(tmp_path), train=2, test=1, seed=1))
    assert (tmp_path / "manifest.jsonl").read_text() != (folder / "manifest.jsonl").read_text()


def test_clips_are_small_videos_of_one_second_a_segment(folder, lines):
    path = folder / lines[0]["path"]
    with av.open(str(path)) as container:
        stamps = [float(frame.time) for frame in container.decode(video=0)]
    assert stamps == [i / toy.FRAMES_PER_SECOND for i in range(len(stamps))]
    assert len(stamps) == toy.SEGMENTS * toy.FRAMES_PER_SECOND
    assert path.stat().st_size < 60_000


def test_the_video_shows_what_was_drawn(folder, lines):
    rng = np.random.default_rng((0, 2, 0))
    things = toy.thing_sets(30, np.random.default_rng((0, 1)))[0]
    drawn = toy.clip(things, rng).astype(np.float32)
    with av.open(str(folder / lines[0]["path"])) as container:
        shown = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    # Noise is what the codec drops; shapes and colours stay.
    assert np.abs(drawn.mean((1, 2)) - shown.mean((1, 2))).max() < 4
    assert np.abs(drawn - shown).mean() < 16


def test_captions_name_the_things_in_any_order(folder, lines):
    sets = toy.thing_sets(30, np.random.default_rng((0, 1)))
    in_order = 0
    for line, things in zip(lines, sets, strict=True):
        for caption in line["captions"]:
            assert things_named(caption) == frozenset(things)
            places = [caption.index(toy.SHAPES[s][0]) for _, s in things]
            in_order += places == sorted(places)
    assert in_order < len(sets) / 2


def test_sets_are_distinct_so_no_test_set_occurs_in_training(lines):
    sets = {things_named(line["captions"][0]) for line in lines}
    assert len(sets) == len(lines)
    splits = [line["split"] for line in lines]
    assert (splits.count("train"), splits.count("test")) == (20, 10)


def test_pictures_show_one_to_four_things(tmp_path):
    assert list(toy.write_pictures(str(tmp_path), train=18, test=2)) == list(range(1, 21))
    lines = read_manifest(tmp_path)
    assert [line["split"] for line in lines] == ["train"] * 18 + ["test"] * 2
    for line in lines:
        with Image.open(tmp_path / line["path"]) as picture:
            assert picture.size == (toy.PICTURE_SIDE, toy.PICTURE_SIDE)
        assert 1 <= len(things_named(line["captions"][0])) <= 4


def test_clips_are_another_domain_than_pictures():
    rng = np.random.default_rng(0)
    pictures = np.stack([toy.picture(rng)[0] for _ in range(20)])
    things = toy.thing_sets(1, rng)[0]
    assert toy.clip(things, rng).mean() < pictures.mean() - 60
    rare = set(RARE)
    assert sum(len(rare & set(toy.caption(things, toy.CLIPS, rng).split())) for _ in range(5)) >= 20
