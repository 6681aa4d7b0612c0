"""The tables of runs, what is a row of its own, and every reason to refuse one."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.compare import compare, compare_all, main, read_results, table, tables
from uniadapter_jax.tasks.retrieval.metrics import paired_bootstrap, summarize

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
        (changed(("data", "fingerprint"), "xyz"), r"run0.*run1.*data is 'abc' and 'xyz'"),
        (changed(("query_ids", "t2v", 3), "video9#9"), r"t2v query 3 is 'video1#1' and 'video9#9'"),
        (changed(("protocol", "ties"), "expected"), "'optimistic'.* and .*'expected'"),
        (changed(("seed",), 0), "seed 0 comes twice"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, other, message):
    with pytest.raises(UserError, match=message):
        compare(read_results(write(tmp_path, result(), other)))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (changed(("data", "fingerprint"), "xyz"), ("test data abc", "test data xyz")),
        (changed(("split",), "val"), ("test data abc", "val data abc", "not on test data")),
        (changed(("protocol", "ties"), "expected"), ("ties optimistic", "ties expected")),
        (changed(("protocol", "v2t"), "max_pool"), ("v2t best_caption", "v2t max_pool")),
    ],
)
def test_what_cannot_be_compared_is_in_tables_of_its_own(tmp_path, other, said):
    found = compare_all(read_results(write(tmp_path, *story(), other)), samples=50)
    assert [len(table["methods"]) for table in found] == [2, 1]
    assert [len(row["seeds"]) for table in found for row in table["methods"]] == [1, 3, 1]
    assert "mnr_difference" not in found[1]["methods"][0]
    text = tables(found)
    assert text.startswith("2 tables: ") and all(words in text for words in said)
    assert not tables(compare_all(read_results([str(tmp_path / "run0")]))).startswith("1 tables")


def identity(seed=0, **changes):
    """Of a run; a dot is written as two underscores."""
    fields = {"seed": seed, "batch_size": 64, "optimizer.lr": 1e-3, "method.bottleneck": 8,
              "task.similarity": "q_score", "backbone": "f" * 64, "version": 2}  # fmt: skip
    return {**fields, **{name.replace("__", "."): value for name, value in changes.items()}}


def names_of(*runs):
    table = compare([{**run, "path": f"run{i}"} for i, run in enumerate(runs)], samples=20)
    return [(row["name"], row["seeds"]) for row in table["methods"]]


def test_seeds_of_a_row_differ_in_nothing_else():
    def runs(*changes, seeds=(0, 1)):
        return [
            result(seed=seed, identity=identity(seed, **change), evaluation=evaluation)
            for change, evaluation in changes
            for seed in seeds
        ]

    both = [0, 1]
    assert names_of(*runs(({}, {}))) == [("cross_modal_adapter", both)]
    assert names_of(*runs(({}, {}), ({"optimizer__lr": 1e-4}, {}))) == [
        ("cross_modal_adapter lr=1e-3", both),
        ("cross_modal_adapter lr=1e-4", both),
    ]
    assert names_of(*runs(({}, {"task.rerank_k": 4}), ({}, {"task.rerank_k": 16}))) == [
        ("cross_modal_adapter rerank_k=4", both),
        ("cross_modal_adapter rerank_k=16", both),
    ]
    other = {"optimizer__lr": 2.5e-5, "method__bottleneck": 16, "batch_size": 128}
    assert names_of(*runs(({}, {}), (other, {}), seeds=[3]))[1] == (
        "cross_modal_adapter bottleneck=16 lr=2.5e-5 batch_size=128",
        [3],
    )
    assert names_of(*runs(({}, {}), ({"backbone": "ab" * 32}, {}), seeds=[3]))[1] == (
        "cross_modal_adapter backbone=abababab",
        [3],
    )


def test_names_stay_apart_where_many_fields_differ():
    fields = {f"x.{letter}": 0 for letter in "abcdef"}
    runs = [
        result(identity=identity(**{**fields, **change}))
        for change in ({}, dict.fromkeys(fields, 1), {"x.f": 1}, {"x.e": 1, "x.f": 1})
    ]
    names = [name for name, _ in names_of(*runs)]
    assert len(set(names)) == 4 and all("f=" in name for name in names)
    two = [result(identity=identity(**{**fields, **dict.fromkeys(fields, i)})) for i in range(2)]
    assert [name for name, _ in names_of(*two)] == [
        f"cross_modal_adapter a={i} b={i} c={i} d={i} and 2 more" for i in range(2)
    ]


def test_results_of_earlier_versions_are_seeds_of_the_same_row():
    """A field that is younger than a result is looked up in its config, or taken as equal."""
    old = identity(1, **{"task.similarity": "q_score"})
    del old["version"], old["optimizer.lr"]
    new = identity(0, **{"compute__dropout": 0.0})
    config = {"optimizer": {"lr": 1e-3}}
    assert len(names_of(result(identity=new), result(seed=1, identity=old, config=config))) == 1
    config = {"optimizer": {"lr": 1e-4}}
    assert len(names_of(result(identity=new), result(seed=1, identity=old, config=config))) == 2
    assert len(names_of(result(), result(seed=1))) == 1  # no identity at all
    assert names_of(result(), result(seed=1, trained=7))[1][0].endswith("parameters=7")


def test_a_baseline_of_several_rows_must_be_chosen(tmp_path):
    runs = [result(identity=identity(optimizer__lr=lr)) for lr in (1e-3, 1e-4)]
    results = read_results(write(tmp_path, *runs))
    with pytest.raises(UserError, match=r"several rows.*lr=1e-3.*lr=1e-4"):
        compare(results, "cross_modal_adapter")
    assert compare(results, "cross_modal_adapter lr=1e-4", 20)["baseline"].endswith("lr=1e-4")
    with pytest.raises(UserError, match="nobody is not among the rows"):
        compare_all(results, "nobody")


def questions(seed=0, **changes):
    made = result("uniadapter", seed)
    for name in ("ranks", "query_ids"):
        del made[name]
    made["metrics"] = {
        "accuracy": {"overall": 50.0 + seed},
        "per_answer_type": {"number": 20.0, "yes/no": 70.0},
        "per_question_type": {"what": 40.0},
    }
    return {**made, "questions": 12, "clips": 5, "protocol": {"metric": "vqa"}, **changes}


def test_answers_to_questions_have_tables_too(tmp_path, capsys):
    runs = write(tmp_path, questions(0), questions(2), result())
    assert main([*runs, "--samples=50"]) == 0
    text = capsys.readouterr().out
    assert "2 tables" in text and "answers to questions, 12 questions" in text
    assert "51.0 ± 1.4" in text and "yes/no" in text and "metric vqa" in text and "R@1" in text
    withheld = table(compare([{**questions(metrics={}), "path": "x"}]))
    assert "withheld" in withheld and "uniadapter" in withheld


def test_tasks_in_one_table_are_told(tmp_path):
    runs = [result(task="retrieval"), result("uniadapter", task="matching")]
    text = table(compare(read_results(write(tmp_path, *runs))))
    assert "tasks differ: retrieval (cross_modal_adapter); matching (uniadapter)" in text


def test_ties_are_told(tmp_path):
    few, many = ({"texts": 60, "clips": 30, "tied_queries": {"t2v": n, "v2t": 0}} for n in (0, 57))
    runs = [result(**few), result(seed=1, **many)]
    text = table(compare(read_results(write(tmp_path, *runs))))
    assert "cross_modal_adapter, seed 1, t2v: 57 of 60 queries tied" in text
    assert text.count("tied") == 1


def test_a_folder_without_a_result_is_skipped(tmp_path, capsys):
    runs = write(tmp_path, *story())
    (tmp_path / "empty").mkdir()
    assert main([runs[0], str(tmp_path / "empty"), *runs[1:], "--samples=50"]) == 0
    shown = capsys.readouterr()
    assert f"skipped: {tmp_path / 'empty'}" in shown.err and "zero_shot" in shown.out
    assert main([str(tmp_path / "empty")]) == 2
    assert "none of these holds a result.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        '{"method": ',
        "[1]",
        '{"method": "lora"}',
        "\x00" * 40,
        json.dumps(result(ranks={"t2v": [1], "v2t": [1]})),
        json.dumps(result(query_ids=[])),
        json.dumps(result(parameters={"trained": "many"})),
        json.dumps(result(metrics={"t2v": {"R@1": "high"}})),
        json.dumps(result(metrics={"t2v": 1.5})),
        json.dumps(result(task=[])),
        json.dumps(result(texts=60)),
        json.dumps(result(texts=60, clips=30, tied_queries={"t2v": 1})),
        json.dumps(result(texts=60, clips=30, tied_queries={"t2v": {}, "v2t": 0})),
        json.dumps(result(pessimistic_metrics={"t2v": {}, "v2t": {"R@1": 1.0}})),
        json.dumps(result(also=["dsl"])),
        json.dumps(result(also={"dsl": [1.0]})),
        json.dumps(result(also={"dsl": {"t2v": {"R@1": "high"}}})),
        json.dumps({**result(), "sha256": "0" * 64}),
    ],
)
def test_a_damaged_result_is_named(tmp_path, capsys, content):
    runs = write(tmp_path, *story())
    (tmp_path / "run1" / "result.json").write_text(content)
    assert main(runs) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith(f"error: {tmp_path / 'run1' / 'result.json'}") and error.count("\n") == 1
    )


def test_further_scores_are_lines_of_their_own(tmp_path, capsys):
    """Those that all seeds of a row have; an older result has none."""
    also = [{"dsl": {"t2v": {"R@1": value}}} for value in (40.0, 50.0)]
    both = write(tmp_path, *(result(seed=s, also=also[s]) for s in range(2)))
    assert main([*both, "--samples=10"]) == 0
    assert "t2v with dsl, which needs all queries: R@1 45.0" in capsys.readouterr().out
    (tmp_path / "older").mkdir()
    older = write(tmp_path / "older", result(seed=2))
    assert main([*both, *older, "--samples=10"]) == 0
    assert "dsl" not in capsys.readouterr().out


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        read_results([str(tmp_path / "nowhere")])


def test_the_command(tmp_path, capsys):
    runs = write(tmp_path, *story())
    assert main([*runs, "--json", "--samples=100"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["tables"]
    assert found["baseline"] == "zero_shot"
    for wrong in ("--baseline=nobody", "--samples=0"):
        assert main([*runs, wrong]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1


def test_it_starts_without_jax():
    code = "import sys, uniadapter_jax.compare; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_module_runs_and_helps():
    command = [sys.executable, "-m", "uniadapter_jax.compare", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "RUN" in shown and "--baseline" in shown


def test_half_a_character_in_a_name_is_printed_as_its_escape(tmp_path, capsys):
    assert main(write(tmp_path, result(method="half\ud800"))) == 0
    assert "half\\ud800" in capsys.readouterr().out


def test_a_whole_number_beyond_float64_is_told(tmp_path, capsys):
    made = result()
    made["metrics"]["t2v"]["R@1"] = 10**400
    assert main(write(tmp_path, made)) == 2
    assert "beyond float64" in capsys.readouterr().err
