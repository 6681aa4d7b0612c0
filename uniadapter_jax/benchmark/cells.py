"""The files of a grid: outcomes of trials, a result per cell, and what says that they still count.

    OUT/grid.json
    OUT/runs/<setting>/<row>/<candidate>/seed<k>/     a workdir of `main`, and log.txt
    OUT/runs/<setting>/<row>/{size,trials,costs}.json
    OUT/results/<setting>/<row>-seed<k>.json          a cell, as docs/benchmark says

Every file names the `key` of the fields and records that it was made from, and is sealed with a
digest. One that has another key is made anew; where a run's own identity differs, the run refuses.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import pathlib
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from uniadapter_jax.benchmark.fields import CELL_BYTES, SCHEMA
from uniadapter_jax.benchmark.grid import Fields, Unit, settings_of
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.files import FileError, read_json, sealed, unsealed, write_json
from uniadapter_jax.data.records import open_records
from uniadapter_jax.runs.files import read_result
from uniadapter_jax.runs.loop import WARM_STEPS
from uniadapter_jax.runs.metrics_file import read_lines
from uniadapter_jax.weights.directory import backbone_family

Content = Mapping[str, Any]  # of a file


class Places:
    """The paths of a unit below OUT."""

    def __init__(self, out: pathlib.Path, unit: Unit):
        self.unit = unit
        self.folder = out / "runs" / unit.setting / unit.name
        self._results = out / "results" / unit.setting

    def workdir(self, chosen: Fields, seed: int) -> pathlib.Path:
        """Where a run works; the candidate's values name the folder."""
        label = re.sub(r"[^\w.=+-]", "_", " ".join(chosen)) or "as-is"
        if len(label) > 100:
            label = hashlib.sha256(label.encode()).hexdigest()[:16]
        return self.folder / label / f"seed{seed}"

    def cell(self, seed: int) -> pathlib.Path:
        """The result of a seed."""
        return self._results / f"{self.unit.name}-seed{seed}.json"


def key_of(unit: Unit, chosen: Fields, seed: int) -> str:
    """A digest of all fields of a run and of the records that it reads."""
    config = unit.config(chosen, seed)
    splits = (config.data.train_split, config.data.val_split, config.data.test_split)
    prints = [open_records(config.data.records, name).fingerprint for name in splits if name]
    text = json.dumps([settings_of(config), prints], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def kept(path: pathlib.Path, key: str) -> Content | None:
    """The content of a sealed file with that key; None if it is missing, damaged or of another."""
    try:
        content, _ = unsealed(read_json(path, limit=CELL_BYTES), path)
    except (FileNotFoundError, FileError):
        return None
    return content if content.get("key") == key else None


def keep(path: pathlib.Path, key: str, content: Mapping[str, Any]) -> Content:
    """Writes a sealed file with a key; returns the content with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**content, "key": key}
    write_json(path, sealed(content))
    return content


def failed_cell(grid: str, places: Places, chosen: Fields, seed: int, reason: str) -> Content:
    """The cell of a run that failed."""
    head = _head(grid, places, chosen, seed)
    head["run_info"] |= {"error_msg": reason}
    return {**head, "train_info": {"status": "failed"}, "cost": None, "quality": None}


def cell(
    grid: str,
    places: Places,
    chosen: Fields,
    seed: int,
    *,
    trials: Sequence[Content],
    costs: Content,
    peak_memory: int,
) -> Content:
    """The cell of a run that has ended, from the files of its workdir."""
    workdir = places.workdir(chosen, seed)
    result = read_result(workdir / "result.json")
    lines = [values for _, _, values in read_lines(workdir / "metrics.jsonl") if values]
    steps = [line for line in lines if line["kind"] == "train"]
    head = _head(grid, places, chosen, seed)
    head["run_info"] |= {"total_time": result["seconds"]}
    cost = {
        **{name: value for name, value in costs.items() if name.startswith("step_")},
        "step_seconds": _step_seconds(steps),
        "peak_memory_bytes": peak_memory,
        "train_seconds": result["train_seconds"],
        "data_wait_share": result["data_wait_share"],
    }
    parameters = result["parameters"]
    return {
        **head,
        "train_info": {
            "status": "success",
            "train_time": result["train_seconds"],
            "file_size": costs.get("adapter_bytes") or 0,
            "num_trainable_params": parameters["trained"],
            "num_total_params": parameters["total"],
            "accelerator_memory_max": peak_memory,
            "metrics": _metrics(lines, result),
        },
        "meta_info": {
            "model_info": {"sha": result["fingerprint"]},
            "dataset_info": {"sha": result["data"]["fingerprint"]},
            "package_info": result["versions"],
            "system_info": {"machine": platform.machine(), "devices": result["devices"]},
            "revision": result["revision"],
        },
        "quality": _quality(result),
        "cost": cost,
        "curve": [
            {"step": line["step"], "value": line["selection"]}
            for line in lines
            if line["kind"] == "val"
        ],
        "trials": list(trials),
        "chosen": list(chosen),
        "evaluations": result["evaluations"],
    }


def _head(grid: str, places: Places, chosen: Fields, seed: int) -> dict[str, Any]:
    unit = places.unit
    config = unit.config(chosen, seed)
    options = {name: value for name, value in config.method.items() if name != "name"}
    return {
        "schema": SCHEMA,
        "grid": grid,
        "setting": unit.setting,
        "row": unit.name,
        "seed": seed,
        "method": config.method.name,
        "family": _family(config.backbone),
        "task": config.task.name,
        "command": unit.command(f"runs/{unit.setting}-{unit.name}-{seed}", chosen, seed),
        "run_info": {
            "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "experiment_name": f"{unit.setting}/{unit.name}/seed{seed}",
            "train_config": settings_of(config),
            "peft_config": {"peft_type": config.method.name.upper(), **options},
            "error_msg": "",
        },
    }


def _family(backbone: str) -> str:
    """The title of the backbone's family; "" where its config cannot be read."""
    try:
        return backbone_family(backbone).title
    except (UserError, FileNotFoundError):
        return ""


def _quality(result: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics, and what each query came to; `accuracies` are empty where answers are withheld."""
    names = ("metrics", "ranks", "query_ids", "tied_queries")
    quality = {name: result[name] for name in names if name in result}
    if result.get("accuracies"):
        quality |= {"correct": result["accuracies"], "question_ids": result["question_ids"]}
    return quality


def _step_seconds(steps: Sequence[Mapping[str, Any]]) -> float | None:
    """The median time of a step without its wait for data, of those behind the first of a start."""
    warm = [s["seconds"] - s["wait_seconds"] for s in steps if s["since_start"] > WARM_STEPS]
    return statistics.median(warm) if warm else None


def _metrics(lines: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measures in order, the last one on test, with the names of PEFT's method comparison."""
    config, loss = result["config"], {line["step"]: line.get("loss") for line in lines}
    batch = config["train"]["batch_size"]

    def one(step: int, split: str, values: Mapping[str, Any]) -> dict[str, Any]:
        named = {f"{split} {name}": value for name, value in values.items()}
        return {"step": step, "train loss": loss.get(step), "train samples": step * batch, **named}

    measured = [
        one(line["step"], "valid", {name: v for name, v in line.items() if "/" in name})
        for line in lines
        if line["kind"] == "val"
    ]
    flat = {f"{g}/{n}": v for g, of in result["metrics"].items() for n, v in of.items()}
    return [*measured, one(result["step"], "test", flat)]
