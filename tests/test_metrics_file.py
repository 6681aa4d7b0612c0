"""metrics.jsonl: a changed digit is noticed, and costs its line only."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from damage import damage

from uniadapter_jax.runs.metrics_file import make_line
from uniadapter_jax.runs.writer import Writer


def values(step, **more):
    times = {"seconds": 0.25, "wait_seconds": 0.001, "since_start": step}
    return {"loss": 1 / (step + 2), **times, **more}


def fill(workdir, steps=9):
    workdir.mkdir(exist_ok=True)
    writer = Writer(workdir, 0)
    for step in range(1, steps + 1):
        writer.write("train", step, values(step))
    writer.write("val", steps, {"selection": 50.0})
    writer.close()
    return workdir / "metrics.jsonl"


def go_on(workdir, step=9):
    writer = Writer(workdir, step)
    lines = writer.read("train")
    writer.close()
    return lines


def expected(steps):
    return [{"kind": "train", "step": step, **values(step)} for step in steps]


def test_lines_come_back_without_a_word(tmp_path, capsys):
    before = fill(tmp_path).read_bytes()
    assert go_on(tmp_path) == expected(range(1, 10))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert go_on(tmp_path, 4) == expected(range(1, 5))
    assert not capsys.readouterr().err and not (tmp_path / "metrics.damaged.jsonl").exists()
    line = json.loads(before.splitlines()[2])
    assert line["loss"] == 1 / 5 and len(line["crc"]) == 8


def test_a_changed_digit_is_named_and_moved(tmp_path, capsys):
    path = fill(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace("0.2,", "0.3,")
    path.write_text("".join(lines))
    assert go_on(tmp_path) == expected([1, 2, 4, 5, 6, 7, 8, 9])
    said = capsys.readouterr().err
    assert "metrics.jsonl: damaged: line 3; moved to" in said and "lacks step 3;" in said
    assert (tmp_path / "metrics.damaged.jsonl").read_text() == lines[2]
    go_on(tmp_path)
    assert "damaged: line" not in capsys.readouterr().err


def test_a_last_line_cut_short_is_dropped(tmp_path, capsys):
    path = fill(tmp_path)
    with path.open("a") as file:
        file.write(make_line({"kind": "train", "step": 10, **values(10)})[:40])
    assert go_on(tmp_path) == expected(range(1, 10)) and not capsys.readouterr().err


def test_lines_of_earlier_versions(tmp_path, capsys):
    """Without a CRC: as long as no line before them has one."""
    path = fill(tmp_path, 3)
    new = path.read_text().splitlines(keepends=True)
    old = [json.dumps({"kind": "train", "step": s, **values(s)}) + "\n" for s in (1, 2, 3)]
    path.write_text("".join([*old[:2], *new[2:]]))
    assert go_on(tmp_path, 3) == expected([1, 2, 3]) and not capsys.readouterr().err
    path.write_text("".join([*new[:2], old[2]]))
    assert go_on(tmp_path, 3) == expected([1, 2])
    assert "damaged: line 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "[" * 10_000 + "]" * 10_000,
        '{"kind": "train", "step": NaN}',
        '{"kind": "train", "step": 2}',
        '{"kind": null, "step": 2}',
        '{"kind": "train", "step": true}',
        '{"kind": "train", "step": 2, "loss": [1]}',
        "7",
        "",
        "\0" * 100,
        '{"kind": "' + "x" * 3_000_000 + '"}',
    ],
    ids=lambda line: line[:24],
)
def test_hostile_lines(tmp_path, capsys, line):
    path = tmp_path / "metrics.jsonl"
    old = [json.dumps({"kind": "train", "step": s, **values(s)}) + "\n" for s in (1, 2)]
    path.write_text(f"{old[0]}{line}\n{old[1]}")
    assert go_on(tmp_path, 2) == expected([1, 2])
    assert "damaged: line 2" in capsys.readouterr().err


def test_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert go_on(tmp_path, 0) == []
    assert (tmp_path / "metrics.jsonl").is_file()


def attack(place, seed):
    path = fill(place)
    told = damage(path, np.random.default_rng(seed))
    lines = go_on(place)
    assert lines == expected(line["step"] for line in lines), told
    return told, len(lines)


def test_random_damage(tmp_path, capsys):
    for seed in range(60):
        told, count = attack(tmp_path / str(seed), seed)
        assert count == 9 or "warning: " in capsys.readouterr().err, told
