"""What docs/ gives as patterns works as it stands, and its tables name all that is registered."""

import json
import re

import pytest
import small_run
import tiny
from flax import nnx
from ml_collections import ConfigDict

from uniadapter_jax import prepare
from uniadapter_jax.adapters.partition import count
from uniadapter_jax.adapters.registry import METHODS
from uniadapter_jax.common.randomness import generator
from uniadapter_jax.data.sources import SOURCES


def pattern(page, heading):
    """The names that the first block of Python under a heading defines."""
    text = (small_run.ROOT / "docs" / page).read_text().partition(f"\n## {heading}\n")[2]
    code = re.search(r"```python\n(.*?)```", text, re.S)[1]
    defined = {}
    exec(compile(code, page, "exec"), defined)
    return defined


def test_the_pattern_of_a_source_reads_a_folder(tmp_path):
    read = pattern("data.md", "A new source")["read"]
    lines = [json.dumps({"clip": clip, "text": text}) for clip, text in ("ax", "ay", "bz")]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    items = read(str(tmp_path)).items
    assert [(item.split, item.id, item.captions) for item in items] == [
        (split, clip, texts)
        for split in ("train", "test")
        for clip, texts in (("a", ("x", "y")), ("b", ("z",)))
    ]
    assert [bool(item.hint) for item in items] == [False, True] * 2


def test_the_pattern_of_a_method_attaches():
    method = pattern("methods.md", "A new method")["METHOD"]
    model = tiny.clip()
    method.attach(model, ConfigDict({**method.options, "bottleneck": 4}), generator(0, "adapters"))
    added = nnx.to_pure_dict(nnx.state(model, method.trainable))
    assert set(added) == {"vision", "text"} and count(added) > 0


@pytest.mark.parametrize(
    ("page", "names"), [("data.md", SOURCES), ("methods.md", METHODS)], ids=["sources", "methods"]
)
def test_a_table_names_all(page, names):
    cells = re.findall(r"^\| (`.*?) \|", (small_run.ROOT / "docs" / page).read_text(), re.M)
    assert set(names) <= {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_prepare_names_all_sources():
    told = re.search(r"\(source: (.*?)\)", prepare.__doc__, re.S)[1]
    assert re.split(r",\s+", told) == list(SOURCES)
