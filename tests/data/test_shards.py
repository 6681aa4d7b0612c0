"""Work shards: named after all they depend on, complete or absent, the same from any worker."""

import dataclasses
import os
import resource
import subprocess
import sys
import textwrap
import weakref

import media
import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.preparation import shards as shards_module
from uniadapter_jax.data.preparation import workers as workers_module
from uniadapter_jax.data.preparation.shards import (
    ITEMS_PER_SHARD,
    item_keys,
    plan_shards,
    read_shard,
)
from uniadapter_jax.data.preparation.workers import decode_shards
from uniadapter_jax.data.sources import read_source


@pytest.fixture
def source(tmp_path):
    return read_source("manifest", str(media.picture_manifest(tmp_path, ITEMS_PER_SHARD + 4)))


def plan(source, directory, items=None, **changes):
    settings = media.settings(**changes)
    os.makedirs(directory, exist_ok=True)
    return plan_shards(items or source.items, source.root, settings, str(directory))


def names(shards):
    return [os.path.basename(shard.path) for shard in shards]


def decode(source, shards, workers=0, **changes):
    reported = []
    decode_shards(
        shards,
        source.root,
        media.settings(**changes),
        workers,
        lambda count, bad: reported.extend([bad] * count),
    )
    return reported


def test_what_was_written_is_read(source, tmp_path):
    shards = plan(source, tmp_path / "w")
    assert [len(shard.items) for shard in shards] == [ITEMS_PER_SHARD, 4]
    assert decode(source, shards) == [0] * len(source.items)
    outcomes = [o for shard in shards for o in read_shard(shard.path)]
    assert [o.key for o in outcomes] == item_keys(source.items, source.root, media.settings())
    heads = [o for shard in shards for o in read_shard(shard.path, with_frames=False)]
    for outcome, head in zip(outcomes, heads, strict=True):
        assert outcome.clip.pts == [0.0]
        assert head.sizes == tuple(len(frame) for frame in outcome.clip.frames)
        assert head.clip.frames == []


@pytest.mark.parametrize(
    "change", [{"short_side": 16}, {"quality": 80}, {"fps": 2.0}, {"shape": "square"}]
)
def test_name_depends_on_settings(source, tmp_path, change):
    assert not set(names(plan(source, tmp_path))) & set(names(plan(source, tmp_path, **change)))


@pytest.mark.parametrize("change", [{"frames": 7}, {"max_bad_share": 0.1}])
def test_name_ignores_what_is_not_used(source, tmp_path, change):
    assert names(plan(source, tmp_path)) == names(plan(source, tmp_path, **change))


def test_name_depends_on_the_files_and_the_decoder(source, tmp_path, monkeypatch):
    before = names(plan(source, tmp_path))
    os.utime(tmp_path / "media" / "p3.png", ns=(1, 1))
    touched = names(plan(source, tmp_path))
    assert touched[0] != before[0]
    assert touched[1] == before[1]
    os.unlink(tmp_path / "media" / "p17.png")
    assert names(plan(source, tmp_path))[1] != before[1]
    monkeypatch.setattr(shards_module, "decoder_versions", lambda: {"av": "0"})
    assert names(plan(source, tmp_path))[0] not in (before[0], touched[0])


def test_name_depends_on_the_range(source, tmp_path):
    items = (dataclasses.replace(source.items[0], end=1.0), *source.items[1:])
    assert names(plan(source, tmp_path))[0] != names(plan(source, tmp_path, items))[0]


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_write_the_same_bytes(source, tmp_path, workers):
    alone, shared = plan(source, tmp_path / "0"), plan(source, tmp_path / "n")
    decode(source, alone)
    assert sorted(decode(source, shared, workers)) == [0] * len(source.items)
    for a, b in zip(alone, shared, strict=True):
        assert open(a.path, "rb").read() == open(b.path, "rb").read()
    assert sorted(os.listdir(tmp_path / "n")) == sorted(names(shared))


def test_finished_shards_are_not_decoded_again(source, tmp_path):
    shards = plan(source, tmp_path / "w")
    decode(source, shards[:1])
    assert decode(source, shards) == [0] * 4


def test_a_file_that_kills_the_decoder_costs_only_itself(source, tmp_path):
    """Shown with a real death: the decoder of one file ends its process."""
    script = textwrap.dedent(f"""
        import os, sys
        sys.path.insert(0, {os.path.dirname(media.__file__)!r})
        import media
        from uniadapter_jax.data.preparation import shards, workers
        from uniadapter_jax.data.sources import read_source

        original = shards.read_clip

        def deadly(item, root, settings):
            if item.id == "p5":
                os.abort()
            return original(item, root, settings)

        shards.read_clip = deadly

        if __name__ == "__main__":
            source = read_source("manifest", {str(tmp_path / "manifest.jsonl")!r})
            settings = media.settings()
            os.makedirs({str(tmp_path / "w")!r})
            plan = shards.plan_shards(source.items, source.root, settings, {str(tmp_path / "w")!r})
            workers.decode_shards(plan, source.root, settings, 2, lambda count, bad: None)
            for shard in plan:
                for index, outcome in zip(shard.indices, shards.read_shard(shard.path)):
                    print(index, outcome.reason)
    """)
    (tmp_path / "deadly.py").write_text(script)
    command = [sys.executable, str(tmp_path / "deadly.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    expected = [f"{i} crash" if i == 5 else f"{i} " for i in range(len(source.items))]
    assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.parametrize("workers", [0, 2])
def test_full_disk(source, tmp_path, workers):
    shards = plan(source, tmp_path / "w")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(UserError, match=r"shard-.*cannot write: file size limit.*free [\d,]+"):
            decode(source, shards, workers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not any(shard.done for shard in shards)
    assert decode(source, shards) == [0] * len(source.items)  # and goes on when there is room


def test_one_clip_is_held_at_a_time(source, tmp_path, monkeypatch):
    """Each is written before the next is decoded."""
    alive = weakref.WeakSet()

    def decoded(*args):
        assert len(alive) <= 1  # the one before, as a loop's variable
        outcome = decode_item(*args)
        alive.add(outcome)
        return outcome

    decode_item = workers_module.decode_item
    monkeypatch.setattr(workers_module, "decode_item", decoded)
    monkeypatch.setattr(shards_module.Outcome, "__hash__", object.__hash__)
    decode(source, plan(source, tmp_path / "w"))
