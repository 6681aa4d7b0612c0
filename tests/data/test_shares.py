"""Commands that decode a share each: killed, doubled, late, and the same bytes in the end."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import media
import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.shares import Share
from uniadapter_jax.data.preparation import shares
from uniadapter_jax.data.preparation.shards import ITEMS_PER_SHARD
from uniadapter_jax.prepare import prepare


def content(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def shards(root):
    return sorted(path.name for path in (root / "out.work" / "shards").iterdir())


def run(root, manifest, share=None, **options):
    return prepare(media.settings(**options), str(manifest), str(root / "out"), share=share)


def test_shares_make_what_one_host_makes(tmp_path, capsys):
    manifest = media.picture_manifest(tmp_path, 4 * ITEMS_PER_SHARD + 3)
    run(tmp_path, manifest, Share(0, 3))
    assert len(shards(tmp_path)) == 2 and not (tmp_path / "out").exists()
    assert "2 of 5 shards" in capsys.readouterr().out
    run(tmp_path, manifest, Share(0, 3))  # doubled
    assert "kept from an earlier run: 32 of 32" in capsys.readouterr().err
    run(tmp_path, manifest, Share(2, 3))
    assert len(shards(tmp_path)) == 3
    run(tmp_path, manifest)  # no host had the share 1
    assert "kept from an earlier run: 48 of 67" in capsys.readouterr().err
    prepare(media.settings(), str(manifest), str(tmp_path / "alone"))
    assert content(tmp_path / "out") == content(tmp_path / "alone")
    assert not (tmp_path / "out.work").exists()
    run(tmp_path, manifest, Share(1, 3))  # late
    assert "share 1/3 has nothing to do" in capsys.readouterr().out
    assert not (tmp_path / "out.work").exists()


def test_a_share_of_what_was_added(tmp_path, capsys):
    manifest = media.picture_manifest(tmp_path, 5)
    run(tmp_path, manifest)
    media.write_picture(tmp_path / "media" / "new.png")
    line = {"id": "new", "path": "media/new.png", "captions": ["new"]}
    manifest.write_text(f"{manifest.read_text()}{json.dumps(line)}\n")
    capsys.readouterr()
    run(tmp_path, manifest, Share(0, 1))
    assert "decoding 1 items" in capsys.readouterr().err
    run(tmp_path, manifest)
    prepare(media.settings(), str(manifest), str(tmp_path / "alone"))
    assert content(tmp_path / "out") == content(tmp_path / "alone")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_share_that_is_overtaken_ends_well(tmp_path, monkeypatch, capsys, workers):
    """The records are assembled, and the work removed, while it decodes."""
    manifest = media.picture_manifest(tmp_path, 5)
    decode = shares.decode

    def overtaken(mine, *args, **kwargs):
        run(tmp_path, manifest)
        decode(mine, *args, **kwargs)

    monkeypatch.setattr(shares, "decode", overtaken)
    prepare(
        media.settings(), str(manifest), str(tmp_path / "out"), share=Share(0, 1), workers=workers
    )
    assert "was assembled meanwhile" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.jsonl", "media", "out"]


def test_a_damaged_shard_is_made_again(tmp_path, capsys):
    manifest = media.picture_manifest(tmp_path, 5)
    run(tmp_path, manifest, Share(0, 1))
    (path,) = (tmp_path / "out.work" / "shards").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-40] + bytes(40))
    run(tmp_path, manifest, Share(0, 1))
    assert path.read_bytes() == whole and "decoded again" in capsys.readouterr().err


def test_what_another_host_writes_stays(tmp_path):
    manifest = media.picture_manifest(tmp_path, 5)
    place = tmp_path / "out.work" / "shards"
    place.mkdir(parents=True)
    theirs, dead = place / "shard-ab.other-host.7.tmp", place / f"shard-ab.{os.uname()[1]}.0x.tmp"
    theirs.touch(), dead.touch()
    (tmp_path / "media" / "p1.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="max_bad_share"):
        run(tmp_path, manifest, max_bad_share=0.0)
    assert theirs.exists() and not dead.exists()


@pytest.mark.slow
def test_four_processes_one_killed_and_run_again_one_doubled(tmp_path):
    """Also one that goes on while the records are assembled."""
    manifest = media.picture_manifest(tmp_path / "raw", 24 * ITEMS_PER_SHARD)
    settings = vars(media.settings())
    (tmp_path / "config.py").write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict({{'data': {{'records': '', 'prepare': {settings!r}}}}})\n"
    )

    def start(*arguments):
        command = [sys.executable, "-m", "uniadapter_jax.prepare", "--workers=1"]
        where = [f"--config={tmp_path}/config.py", f"--input={manifest}", f"--output={out}"]
        return subprocess.Popen([*command, *where, *arguments], stderr=subprocess.PIPE, text=True)

    out: pathlib.Path = tmp_path / "out"
    jobs = {i: start(f"--share={i}/4") for i in (0, 1, 2, 3)}
    doubled = start("--share=2/4")
    place = tmp_path / "out.work" / "shards"
    while not (place.exists() and any(place.iterdir())):
        time.sleep(0.01)
    jobs[1].send_signal(signal.SIGKILL)
    jobs[1].communicate()
    jobs[1] = start("--share=1/4")
    for job in [*jobs.values(), doubled]:
        _, said = job.communicate(timeout=300)
        assert job.returncode == 0, said
    assert len([name for name in shards(tmp_path) if not name.endswith(".tmp")]) == 24
    late = start("--share=3/4")
    assemble = start()
    for job in (late, assemble):
        _, said = job.communicate(timeout=300)
        assert job.returncode == 0, said
    assert "kept from an earlier run: 384 of 384 items" in said
    prepare(media.settings(), str(manifest), str(tmp_path / "alone"))
    assert content(out) == content(tmp_path / "alone")
