"""scripts/split_easy_vqa.py: which pictures and questions each of the two tasks gets."""

import json
import subprocess
import sys

import numpy as np
import pytest
import small_run
from PIL import Image

RED, CYAN = (200, 30, 10), (55, 225, 245)


@pytest.fixture
def data(tmp_path):
    """Four pictures of either split, a red one for each question."""
    for split in ("train", "test"):
        (tmp_path / split / "images").mkdir(parents=True)
        for number in range(4):
            picture = Image.new("RGB", (8, 8), RED)
            picture.save(tmp_path / split / "images" / f"{number}.png")
        asked = [["what color is the shape?", "red", number] for number in range(4)]
        (tmp_path / split / "questions.json").write_text(json.dumps(asked))
    return tmp_path


def split(data):
    script = small_run.ROOT / "scripts" / "split_easy_vqa.py"
    command = [sys.executable, str(script), *map(str, (data, data / "first", data / "second"))]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_second_half_is_inverted(data):
    assert split(data).returncode == 0
    for folder, numbers, colour in (("first", [0, 2], RED), ("second", [1, 3], CYAN)):
        for part, expected in (("train", numbers), ("test", [0, 1, 2, 3])):
            place = data / folder / part
            asked = json.loads((place / "questions.json").read_text())
            assert asked == [["what color is the shape?", "red", number] for number in expected]
            names = sorted(path.name for path in (place / "images").iterdir())
            assert names == [f"{number}.png" for number in expected]
            for name in names:
                pixels = np.asarray(Image.open(place / "images" / name))
                np.testing.assert_array_equal(pixels, np.full((8, 8, 3), colour, np.uint8))


def test_what_is_missing_is_named(data):
    (data / "train" / "images" / "3.png").unlink()
    done = split(data)
    assert done.returncode != 0 and "3.png: No such file" in done.stderr
    assert "Traceback" not in done.stderr
