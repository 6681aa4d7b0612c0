"""Several processes index one folder, and it is as if one had."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading

import media
import numpy as np
import pytest
import search_case
import small_run
from search_case import Colours, content
from test_processes import free_port

import uniadapter_jax
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.shares import Share
from uniadapter_jax.inference.clip_files import Windows
from uniadapter_jax.inference.search import building, shares, writing
from uniadapter_jax.inference.search.building import Team, build
from uniadapter_jax.inference.search.index import Index

CRASHES = "uniadapter_jax.inference.search.crashes.survives"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    search_case.make_folder(folder)
    (folder / "p02.mp4").write_bytes(b"no video either")
    shutil.copy(folder / "p00.png", folder / "z.png")  # a copy, in a share of its own
    shutil.copy(folder / "long.mp4", folder / "deep" / "copy.mp4")
    return folder


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(writing, "CLIPS", 4)


def together(clips, output, count, windows=None, odd=None):
    """So many members of a team, each in a thread; `odd` are the windows of the last."""
    barrier, errors = threading.Barrier(count), []

    def member(i):
        team = Team(Share(i, count), barrier.wait)
        own = odd if odd and i == count - 1 else windows
        try:
            build(str(clips), output, Colours(), windows=own, threads=1, team=team)
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=member, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("windows", [None, Windows(1.0, 0.5)])
@pytest.mark.parametrize("count", [2, 5])
def test_many_write_what_one_writes(clips, tmp_path, count, windows):
    assert not together(clips, tmp_path / "many", count, windows)
    build(str(clips), tmp_path / "one", Colours(), windows=windows, threads=1)
    assert content(tmp_path / "many") == content(tmp_path / "one")
    assert not together(clips, tmp_path / "many", count, windows)  # nothing is new
    assert content(tmp_path / "many") == content(tmp_path / "one")


def test_the_shares_are_all_files_in_blocks_of_a_part():
    files = [f"{i:04d}" for i in range(100)]
    found = [shares.share_of(files, Share(i, 3)) for i in range(3)]
    assert (
        sorted([*found[0], *found[1], *found[2]]) == files
        and max(map(len, found)) - min(map(len, found)) <= 4
    )
    assert found[1][:8] == [*files[4:8], *files[16:20]]
    assert [shares.share_of(files[:2], Share(i, 3)) for i in range(3)] == [["0000"], ["0001"], []]


def rows_of(output):
    index = Index.open(output)
    return {
        clip.id: part.rows[clip.row : clip.row + clip.rows].tolist()
        for part in index._table.parts
        for clip in part.clips
    }


def test_a_group_that_was_killed_loses_little(clips, tmp_path, monkeypatch):
    meetings = iter([lambda: None, lambda: 1 / 0])  # it dies before it puts shares together
    team = Team(Share(0, 2), lambda: next(meetings)())
    with pytest.raises(ZeroDivisionError):
        build(str(clips), tmp_path / "killed", Colours(), threads=1, team=team)
    suspect = tmp_path / "killed" / "shares" / "1"
    suspect.mkdir()
    (suspect / "reading.json").write_text(json.dumps(os.listdir(clips)))
    seen, tried = [], []
    changes = building.changes
    monkeypatch.setattr(building, "changes", lambda *a: seen.append(changes(*a)) or seen[-1])
    monkeypatch.setattr(CRASHES, lambda *a: tried.append(a) or True)
    build(str(clips), tmp_path / "killed", Colours(), threads=1)
    build(str(clips), tmp_path / "one", Colours(), threads=1)
    assert 0 < len(seen[0].fresh) < len(seen[1].fresh)
    assert {os.path.basename(a[0]) for a in tried} >= {"long.mp4"} & {*seen[0].fresh} and tried
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "one")
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert not left & {"shares", "reading.json"}


def test_members_with_other_flags_are_refused(clips, tmp_path):
    errors = together(clips, tmp_path / "many", 2, odd=Windows(1.0, 1.0))
    assert any(isinstance(e, UserError) and "window" in str(e) for e in errors), errors


@pytest.mark.slow
def test_processes_and_devices_index_together(tmp_path):
    """The command, as on a pod: two processes of two devices each, and one of one."""
    folder = tmp_path / "clips"
    for i in range(30):
        media.write_picture(folder / f"p{i:02d}.png", grey=8 * i + 5)
        media.write_video(folder / "films" / f"v{i:02d}.mp4", frames=10 + i)
    tiny = os.path.join(os.path.dirname(uniadapter_jax.__file__), "assets", "tiny_clip")

    def start(output, devices, *flags):
        flags = (f"--input={folder}", f"--output={output}", f"--backbone={tiny}", *flags)
        count = f"--xla_force_host_platform_device_count={devices}"
        return subprocess.Popen(
            [sys.executable, "-m", "uniadapter_jax.index", *flags, "--batch-size=16"],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": count},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    group = (f"--coordinator=127.0.0.1:{free_port()}", "--num-processes=2")
    two = [start(tmp_path / "two", 2, *group, f"--process-id={i}") for i in range(2)]
    for job in [*two, start(tmp_path / "one", 1)]:
        said, _ = job.communicate(timeout=300 * small_run.PATIENCE)
        assert job.returncode == 0, said
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")]
    assert reports[0] == reports[1] and reports[0]["clips"] == 60
    one, two = (rows_of(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, rows in one.items():
        np.testing.assert_allclose(two[name], rows, atol=2e-5)
