"""The table of runs, and every reason to refuse one."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest

from uniadapter_jax.compare import compare, main, read_results, table
from uniadapter_jax.errors import UserError
from uniadapter_jax.metrics import paired_bootstrap, summarize

CLIPS = 30


def result(method="cross_modal_adapter", seed=0, shift=0.0, trained=512, **changes):
    rng = np.random.default_rng(seed + 10 * len(method))
    base = np.random.default_rng(99).integers(1, 15, size=CLIPS)
    ranks = {
        "t2v": np.repeat(np.maximum(1, base + shift + rng.integers(0, 2, CLIPS)), 2).tolist(),
        "v2t": np.maximum(1, base + shift).tolist(),
    }
    made = {
        "method": method,
        "seed": seed,
        "parameters": {"trained": trained, "total": 100_000, "percent": trained / 1000},
        "metrics": {way: summarize(values) for way, values in ranks.items()},
        "ranks": ranks,
        "query_ids": {
            "t2v": [f"video{i // 2}#{i % 2}" for i in range(2 * CLIPS)],
            "v2t": [f"video{i}" for i in range(CLIPS)],
        },
        "data": {"fingerprint": "abc", "coverage": {}},
        "protocol": {"similarity": "q_score", "v2t": "best_caption", "ties": "optimistic"},
    }
    return {**made, **changes}


def write(root, *results):
    for i, content in enumerate(results):
        (root / f"run{i}").mkdir()
        (root / f"run{i}" / "result.json").write_text(json.dumps(content))
    return [str(root / f"run{i}") for i in range(len(results))]


def story():
    return [result("zero_shot", 0, 4, trained=0), *(result(seed=s) for s in range(3))]


def test_rows_hold_mean_and_deviation_over_seeds(tmp_path):
    runs = story()
    compared = compare(read_results(write(tmp_path, *runs)), samples=500)
    zero, adapter = compared["methods"]
    assert (zero["method"], adapter["seeds"]) == ("zero_shot", [0, 1, 2])
    values = [run["metrics"]["t2v"]["MnR"] for run in runs[1:]]
    assert adapter["metrics"]["t2v"]["MnR"]["mean"] == pytest.approx(np.mean(values))
    assert adapter["metrics"]["t2v"]["MnR"]["sd"] == pytest.approx(np.std(values, ddof=1))
    assert zero["metrics"]["t2v"]["MnR"]["sd"] is None and "mnr_difference" not in zero
    assert compared["queries"] == {"t2v": 60, "v2t": 30}


def test_the_interval_is_paired_over_clips_and_averages_seeds(tmp_path):
    runs = story()
    adapter = compare(read_results(write(tmp_path, *runs)), samples=500)["methods"][1]
    for way, clips in (("t2v", np.repeat([f"video{i}" for i in range(CLIPS)], 2)), ("v2t", None)):
        ranks = [run["ranks"][way] for run in runs]
        names = clips if clips is not None else [f"video{i}" for i in range(CLIPS)]
        wanted = paired_bootstrap(np.mean(ranks[1:], axis=0), ranks[0], 500, clips=names)
        assert adapter["mnr_difference"][way] == pytest.approx(wanted)
        assert wanted["high"] < 0


def test_baseline_by_name_and_none(tmp_path):
    runs = write(tmp_path, *story()[1:], result("lora", 0, 1))
    assert compare(read_results(runs))["baseline"] is None
    rows = compare(read_results(runs), "lora", samples=100)["methods"]
    assert "mnr_difference" in rows[0] and "mnr_difference" not in rows[1]
    with pytest.raises(UserError, match="full is not among"):
        compare(read_results(runs), "full")


def test_the_table_shows_it_all(tmp_path):
    text = table(compare(read_results(write(tmp_path, *story())), samples=200))
    assert text.count("cross_modal_adapter") == 2 and "MnR - zero_shot [95 %]" in text
    assert "±" in text and "0.512" in text and "60 queries" in text
    lines = text.splitlines()[1:4]
    assert len({len(line) for line in lines[::2]}) == 1


def changed(path, value):
    """A second run that differs from the first at one place."""
    other = copy.deepcopy(result(seed=1))
    place = other
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return other


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (changed(("data", "fingerprint"), "xyz"), r"run0.*run1.*fingerprint abc and xyz"),
        (changed(("query_ids", "t2v", 3), "video9#9"), r"t2v query 3 is 'video1#1' and 'video9#9'"),
        (changed(("query_ids", "v2t"), ["video0"]), "30 and 1 v2t queries"),
        (changed(("protocol", "ties"), "expected"), "protocol.ties is 'optimistic' and 'expected'"),
        (changed(("seed",), 0), "seed 0 comes twice"),
        (changed(("parameters", "trained"), 7), "train other parameters"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, other, message):
    with pytest.raises(UserError, match=message):
        compare(read_results(write(tmp_path, result(), other)))


def test_unreadable_runs_name_the_file(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_results([str(tmp_path)])
    (tmp_path / "result.json").write_text('{"method": ')
    with pytest.raises(UserError, match=r"result.json: is not JSON"):
        read_results([str(tmp_path)])
    (tmp_path / "result.json").write_text('{"method": "lora"}')
    with pytest.raises(UserError, match="lacks"):
        read_results([str(tmp_path / "result.json")])


def test_the_command(tmp_path, capsys):
    runs = write(tmp_path, *story())
    assert main([*runs, "--json", "--samples=100"]) == 0
    assert json.loads(capsys.readouterr().out)["baseline"] == "zero_shot"
    assert main([*runs, "--baseline=nobody"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_the_module_runs_and_helps():
    command = [sys.executable, "-m", "uniadapter_jax.compare", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "RUN" in shown and "--baseline" in shown
