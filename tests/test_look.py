"""The contact sheet of records: which clips and frames, and texts that do no harm."""

import functools
import json

import media
import pytest
from PIL import Image

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.inference.contact_sheet import FRAMES, shown
from uniadapter_jax.inference.gallery import FRAME
from uniadapter_jax.look import look, main
from uniadapter_jax.prepare import prepare

EVIL = "<script>alert('x')</script> & \"more\""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tmp_path_factory.mktemp("look")
    manifest = media.picture_manifest(place, 4, captions=1)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines[1] |= {"id": EVIL, "captions": [EVIL, "é" * 300], "qa": [{"question": EVIL}]}
    lines[3]["split"] = "test"
    media.write_manifest(manifest, lines)
    prepare(media.settings(), str(manifest), str(place / "out"))
    return str(place / "out")


def test_a_page_holds_all_and_escapes_it(root, tmp_path):
    said = look(root, "", [], 20, str(tmp_path / "new" / "sheet.html"))
    assert ": test,train of " in said and "4 of 4 clips" in said
    said = look(root, "train", [], 20, str(tmp_path / "sheet.html"))
    page = (tmp_path / "sheet.html").read_text()
    assert "3 of 3 clips; its splits: test, train" in said
    assert page.count("data:image/png;base64,") == 3 and "1 frames; at 0.00 s" in page
    assert "<script" not in page and page.count("&lt;script&gt;") == 3
    assert "://" not in page


def test_a_picture_of_chosen_clips(root, tmp_path):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    look(root, "train", ["p2"], 20, str(one))
    look(root, "train", ["p2", EVIL], 20, str(two))
    with Image.open(one) as first, Image.open(two) as second:
        assert first.height < second.height and second.width < 2000


def test_frames_are_spread_over_the_clip():
    assert shown(3) == [0, 1, 2]
    assert len(shown(100)) == FRAMES and shown(100)[0] == 0 and shown(100)[-1] == 99


@pytest.mark.parametrize(
    ("split", "ids", "output", "message"),
    [
        ("train", [], "sheet.pdf", "ends with .png or .html"),
        ("val", [], "sheet.png", "no split 'val'"),
        ("test", ["p0"], "sheet.png", "no such clip in 'test'; it is in train"),
        ("", [], "/proc/x/sheet.png", "/proc/x cannot be made"),
    ],
)
def test_what_is_not_there_is_told(root, tmp_path, split, ids, output, message):
    with pytest.raises(UserError, match=message):
        look(root, split, ids, 20, str(tmp_path / output))


def test_the_command(root, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert main([root, "--split=train", "--id=p0", "--id=p2", f"--output={sheet}"]) == 0
    assert "train of " in capsys.readouterr().out and sheet.exists()
    assert main([root, "--count=0"]) == 2
    assert "--count=0: at least 1" in capsys.readouterr().err


def test_a_run_shows_its_best_and_worst_texts(small, whole, tmp_path):
    small.run("--workdir=as_it_is", method="zero_shot")
    alone, both = tmp_path / "alone.png", tmp_path / "both.png"
    look = functools.partial(small.fork, str(whole), module="uniadapter_jax.look")
    assert f"wrote {alone}" in look(f"--output={alone}", "--count=4").end(0)
    look("--beside=as_it_is", f"--output={both}", "--count=4").end(0)
    with Image.open(alone) as picture, Image.open(both) as beside:
        assert picture.height == beside.height > 4 * FRAME
        assert picture.tobytes() != beside.tobytes()
    said = look("--id=a").end(2)
    assert "--split and --id are of records" in said
    assert "a name that ends with .png" in look("--output=sheet.html").end(2)
