"""An index is what its folder holds, whatever happens on the way, and says what was found."""

from __future__ import annotations

import json
import os
import shutil

import media
import numpy as np
import pytest
import search_case
import small_run
from search_case import Colours, content, index_it, make_folder

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.inference.clip_files import Windows, read_range
from uniadapter_jax.inference.search import building, crashes, folder, writing
from uniadapter_jax.inference.search.building import build
from uniadapter_jax.inference.search.index import Index


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    made = tmp_path_factory.mktemp("media") / "clips"
    make_folder(made)
    return made


@pytest.fixture
def copy(clips, tmp_path):
    """The folder, to be changed."""
    shutil.copytree(clips, tmp_path / "clips")
    return tmp_path / "clips"


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(writing, "CLIPS", 4)


@pytest.fixture
def read(monkeypatch):
    """The files that are decoded."""
    seen = []
    kept = folder.Reader.read

    def counting(self, path, *arguments):
        file = kept(self, path, *arguments)
        if not file.skipped:
            seen.append(path)
        return file

    monkeypatch.setattr(folder.Reader, "read", counting)
    return seen


def names(hits):
    return [hit.name for hit in hits]


@pytest.mark.parametrize("keeps_frames", [False, True])
@pytest.mark.parametrize("windows", [None, Windows(1.0, 0.5)])
def test_search_is_the_models_own_similarity_of_all_clips(
    clips, tmp_path, keeps_frames, windows, small_parts
):
    model = Colours(keeps_frames)
    report = build(str(clips), tmp_path / "i", model, windows=windows)
    index = Index.open(tmp_path / "i", model=model)
    assert len(index) == report["clips"] == (10 if windows is None else 10 + 4 + 7)
    assert report["bad"] == json.loads((tmp_path / "i" / "report.json").read_text())["bad"]
    assert [bad["path"] for bad in report["bad"]] == ["broken.mp4"]
    text, scores = "rgbxyz", []
    for item in index.items():
        times = (None, None) if item.whole else (item.start, item.end)
        clip = read_range(item.path, model.clips, *times)
        features, mask = model.media_features(*model.pixels_of([clip]))
        row = model.clip_rows(features, mask)[0]
        scores.append(float((row @ model.encode_text([text])[0]).max()))
        assert index.item(item.id) == item and os.path.isfile(item.path)
    hits = index.search(text, k=5)
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[:5]
    np.testing.assert_allclose([hit.score for hit in hits], np.take(scores, best), rtol=1e-6)
    assert index.search(vector=index.query(text), k=5) == hits
    assert len(index.search(text, k=500)) == len(index)
    longest = max((i for i in index.items() if i.end), key=lambda i: i.end)
    assert longest.name == "long.mp4" and longest.end == 4.0


def test_only_what_changed_is_read(copy, tmp_path, read, small_parts):
    model, where = Colours(), tmp_path / "i"

    def again():
        read.clear()
        build(str(copy), where, model)
        return sorted(read)

    assert len(again()) == 11
    assert again() == []
    media.write_picture(copy / "new.png", grey=250)
    assert again() == ["new.png"]
    media.write_picture(copy / "p03.png", grey=251, size=(44, 30))
    os.utime(copy / "p04.png", (1, 1))  # the same content
    assert again() == ["p03.png"]
    assert folder.changes(str(copy), Index.open(where)._table.files) == ([], [])
    (copy / "p05.png").unlink()
    (copy / "broken.mp4").unlink()
    assert again() == []
    index = Index.open(where, model=model)
    found = names(index.search("rgbxyz", k=100))
    assert found[:2] == ["p03.png", "new.png"] and len(found) == len(set(found)) == 10
    assert "p05.png" not in found and json.loads((where / "report.json").read_text())["bad"] == []
    fresh = tmp_path / "fresh"
    build(str(copy), fresh, model)
    ours, theirs = (i.search("rgx", k=100) for i in (index, Index.open(fresh, model=model)))
    assert ours == theirs


def test_a_file_that_ended_a_run_is_tried_apart_and_listed(copy, tmp_path, monkeypatch, read):
    """Stands in for a decoder that dies: the process is said to be gone."""
    model, where = Colours(), tmp_path / "i"
    where.mkdir()
    build(str(copy), where, model)
    assert not (where / "reading.json").exists()
    (where / "reading.json").write_text('["p02.png", "p03.png", "gone.png", 3]')
    for name in ("p02.png", "p03.png", "p04.png"):
        media.write_picture(copy / name, grey=200, size=(50, int(name[2]) + 30))
    tried = []
    monkeypatch.setattr(crashes, "survives", lambda path, *_: tried.append(path) or "p03" in path)
    build(str(copy), where, model, threads=1)
    assert [os.path.basename(path) for path in tried] == ["p02.png", "p03.png"]
    bad = {b["path"]: b["reason"] for b in json.loads((where / "report.json").read_text())["bad"]}
    assert bad == {"broken.mp4": "unreadable", "p02.png": "crash"}
    assert not (where / "reading.json").exists()
    build(str(copy), where, model)
    assert len(tried) == 2


@pytest.mark.slow
def test_a_process_of_its_own_tells_a_crash(clips, monkeypatch):
    model = Colours()
    assert crashes.survives(str(clips / "long.mp4"), model.clips)
    assert crashes.survives(str(clips / "broken.mp4"), model.clips)  # bad, but no crash
    monkeypatch.setattr(crashes, "_try", os._exit)
    assert not crashes.survives(3)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_copies_have_the_same_rows_and_renamed_files_are_not_decoded(
    copy, tmp_path, read, monkeypatch, size
):
    monkeypatch.setattr(writing, "CLIPS", size)
    (copy / "z.mp4").write_bytes((copy / "long.mp4").read_bytes())
    (copy / "broken2.mp4").write_bytes((copy / "broken.mp4").read_bytes())
    model, where = Colours(keeps_frames=True), tmp_path / "i"
    build(str(copy), where, model, windows=Windows(1.0, 0.5))
    copied = {"long.mp4", "z.mp4"}
    read.clear()
    (copy / "z.mp4").rename(copy / "y.mp4")
    (copy / "p01.png").rename(copy / "p99.png")
    build(str(copy), where, model, windows=Windows(1.0, 0.5))
    assert read == []
    index = Index.open(where, model=model)
    hits = [hit for hit in index.search("rgx", k=100) if hit.name in {*copied, "y.mp4"}]
    assert len(hits) == 2 * 8
    rows = {name: [] for name in ("long.mp4", "y.mp4")}
    for part in index._table.parts:
        for clip in part.clips:
            if clip.path in rows:
                there = part.rows[clip.row : clip.row + clip.rows]
                rows[clip.path].append((clip.start, clip.end, clip.whole, there.tobytes()))
    assert rows["long.mp4"] == rows["y.mp4"]
    assert "p99.png" in {item.name for item in index.items()}


def test_parts_are_gathered_and_nothing_is_lost(copy, tmp_path, monkeypatch, small_parts):
    monkeypatch.setattr(building, "MOST_PARTS", 2)
    model, where = Colours(keeps_frames=True), tmp_path / "i"
    build(str(copy), where, model, windows=Windows(1.0, 0.5))
    index = Index.open(where, model=model)
    assert sorted(path.name for path in where.iterdir()) == ["index.json", "parts-1", "report.json"]
    monkeypatch.setattr(building, "MOST_PARTS", 100)
    build(str(copy), tmp_path / "many", model, windows=Windows(1.0, 0.5))
    many = Index.open(tmp_path / "many", model=model)
    assert index.search("rgx", k=100) == many.search("rgx", k=100)
    for path in list(copy.glob("*.png"))[:6] + [copy / "long.mp4"]:
        path.unlink()
    build(str(copy), where, model, windows=Windows(1.0, 0.5))
    assert (where / "parts-2").is_dir() and not (where / "parts-1").exists()
    assert len(Index.open(where, model=model)) == 2 + 5


def killed_and_gone_on(clips, tmp_path, moment, **options):
    """The content of an index whose building was killed before its so manieth change of files."""
    where = tmp_path / f"killed{moment}"
    child = small_run.child("search_case", "index_it", (str(clips), str(where), moment))
    child.join(60)
    assert child.exitcode == -9, (moment, child.exitcode)
    index_it(str(clips), str(where))
    return content(where)


def kills(clips, tmp_path, moments, monkeypatch):
    monkeypatch.setattr(writing, "CLIPS", 4)
    index_it(str(clips), str(tmp_path / "whole"))
    whole = content(tmp_path / "whole")
    assert len(whole) == 2 + 2 * 3
    for moment in moments:
        assert killed_and_gone_on(clips, tmp_path, moment) == whole, moment


def test_killed_at_a_moment_it_goes_on(clips, tmp_path, monkeypatch):
    kills(clips, tmp_path, [9], monkeypatch)


@pytest.mark.slow
def test_killed_at_ten_moments_it_goes_on(clips, tmp_path, monkeypatch):
    kills(clips, tmp_path, (1, 2, 3, 5, 6, 8, 10, 12, 14, 16), monkeypatch)


def killed_on_and_on(folder, tmp_path, count, part, moments, monkeypatch):
    """Kills one run after another at so many changes, and lets the last one end."""
    monkeypatch.setattr(writing, "CLIPS", part)
    folder.mkdir()
    search_case.make_many(folder, count)
    where = tmp_path / "killed"
    for moment in moments:
        arguments = (str(folder), str(where), moment, part)
        child = small_run.child("search_case", "index_it", arguments)
        child.join(300)
        assert child.exitcode == -9, (moment, child.exitcode)
    index_it(str(folder), str(where), part=part)
    index_it(str(folder), str(tmp_path / "whole"), part=part)
    assert content(where) == content(tmp_path / "whole")
    assert len(Index.open(where, model=Colours())) == count


def test_some_clips_in_spite_of_two_kills(tmp_path, monkeypatch):
    killed_on_and_on(tmp_path / "many", tmp_path, 30, 8, (7, 20), monkeypatch)


@pytest.mark.slow
def test_two_thousand_clips_in_spite_of_ten_kills(tmp_path, monkeypatch):
    moments = (2, 60, 133, 139, 150, 171, 200, 260, 270, 290)
    killed_on_and_on(tmp_path / "many", tmp_path, 2000, 128, moments, monkeypatch)


def test_what_was_made_otherwise_is_refused_with_both_sides(clips, tmp_path):
    model, where = Colours(), tmp_path / "i"
    build(str(clips), where, model)
    before = content(where)
    other = Colours(words=7)
    other.fingerprint = "other"
    for act in (lambda: build(str(clips), where, other), lambda: Index.open(where, model=other)):
        with pytest.raises(UserError) as caught:
            act()
        assert "i was made with the backbone colours, not other. " in str(caught.value)
    with pytest.raises(UserError, match=r"made with task[.]words=5, not 7[.] Pass"):
        build(str(clips), where, Colours(words=7))
    for changes, words in (
        ({"windows": Windows(2, 1)}, "window=none, not 2 s every 1 s"),
        ({"dtype": "float16"}, "dtype=float32, not float16"),
    ):
        with pytest.raises(UserError, match=words):
            build(str(clips), where, model, **changes)
    with pytest.raises(UserError, match=r"clips[.]frames=3, not 4"):
        build(str(clips), where, Colours(frames=4))
    make_folder(tmp_path / "elsewhere", pictures=1)
    with pytest.raises(UserError, match=r"which is there, not of --input=.*elsewhere"):
        build(str(tmp_path / "elsewhere"), where, model)
    assert content(where) == before


def test_a_folder_that_moved_is_known_again(copy, tmp_path, read):
    model = Colours()
    build(str(copy), tmp_path / "i", model)
    read.clear()
    copy.rename(tmp_path / "moved")
    build(str(tmp_path / "moved"), tmp_path / "i", model)
    assert not read and Index.open(tmp_path / "i").items()[0].path.startswith(str(tmp_path / "mov"))


def test_halves_are_half_as_large_and_close(clips, tmp_path):
    model = Colours()
    for dtype in ("float16", "float32"):
        build(str(clips), tmp_path / dtype, model, dtype=dtype)
    half, full = (Index.open(tmp_path / d, model=model) for d in ("float16", "float32"))
    pairs = zip(half.search("rgx", k=99), full.search("rgx", k=99), strict=True)
    assert max(abs(a.score - b.score) for a, b in pairs) < 1e-2
    assert half._table.parts[0].rows.dtype == np.float16


def test_a_picture_finds_itself_and_the_best_are_matched_again(copy, tmp_path):
    model = Colours()
    build(str(copy), tmp_path / "i", model)
    index = Index.open(tmp_path / "i", model=model)
    assert index.search(image=copy / "p07.png", k=3)[0].name in ("p07.png", "long.mp4")
    first = index.search("rgbxyz", k=6)
    assert [hit.cosine for hit in first] == [hit.score for hit in first]
    (copy / "p06.png").unlink()
    again = index.search("rgbxyz", k=6, rerank=6)
    assert sorted(names(again)) == sorted(names(first))
    assert again[-1].name == "p06.png" and again[-1].reason.startswith("missing")
    scores = [hit.score for hit in again]
    assert scores == sorted(scores, reverse=True) and scores[0] < 0
    asked = index.search("rgbxyz", k=9, ask="how many?")
    assert {hit.answer for hit in asked if hit.name == "long.mp4"} == {"how many? 3"}


def test_wrong_queries_are_refused(clips, tmp_path):
    model = Colours()
    build(str(clips), tmp_path / "i", model)
    index = Index.open(tmp_path / "i", model=model)
    for arguments, words in (
        ({"text": " "}, "empty"),
        ({}, "give one: a text"),
        ({"text": "r", "image": "x.png"}, "give one: a text"),
        ({"text": "r", "k": 0}, "k"),
        ({"text": "r", "k": 10, "rerank": 5}, "less than k=10"),
        ({"image": str(clips / "none.png")}, "--image=.*missing"),
        ({"vector": np.ones(3)}, "vector"),
    ):
        with pytest.raises(UserError, match=words):
            index.search(**arguments)
    model.matches = model.answers = False
    for arguments in ({"rerank": 5}, {"rerank": 20}, {"ask": "what?"}):
        with pytest.raises(UserError, match="needs a"):
            index.search("r", **arguments)
    with pytest.raises(UserError, match="has no clip of the id"):
        index.item("../../etc/passwd")
