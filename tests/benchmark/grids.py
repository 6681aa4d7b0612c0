"""Output directories of grids with known effects, as the runner writes them."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from uniadapter_jax.common.files import sealed, write_json
from uniadapter_jax.tasks.retrieval.metrics import summarize

CLIPS = 60
HOSTILE = "<script>alert(1)</script> | `x` ]]> =1+1 \u202e\x00 ' \" ${alert(2)} \ud800"


def grid(**changes: Any) -> dict[str, Any]:
    """A grid with one setting of clips, three rows and a claim."""
    return {
        "schema": 1,
        "name": "made",
        "settings": {"clips": {"title": "Clips, small", "metric": "t2v/R@1"}},
        "rows": ["zero_shot", "lora", "bitfit"],
        "seeds": [0, 1, 2],
        "baseline": "zero_shot",
        "claims": [claim()],
        **changes,
    }


def claim(**changes: Any) -> dict[str, Any]:
    return {
        "name": "trains",
        "statement": "LoRA beats the frozen model",
        "source": "LoRA, table 1",
        "row": "lora",
        "than": "zero_shot",
        "settings": ["clips"],
        "kind": "better",
        "margin": 0.0,
        **changes,
    }


def cell(row: str, seed: int, quality: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A cell that succeeded."""
    trained = 0 if row == "zero_shot" else 1000 * (1 + sum(map(ord, row)) % 97)
    steps = {} if row == "zero_shot" else {"step_flops": trained * 2e5, "step_seconds": 0.25}
    return {
        "schema": 1,
        "grid": "made",
        "setting": "clips",
        "row": row,
        "seed": seed,
        "method": row.partition("-")[0],
        "family": "clip",
        "task": "retrieval",
        "command": f"python -m uniadapter_jax.main --config=c.py:{row} --config.seed={seed}",
        "run_info": {"created_at": "2026-11-01T10:00:00", "total_time": 12.5, "error_msg": ""},
        "train_info": {
            "status": "success",
            "file_size": 4 * trained,
            "num_trainable_params": trained,
            "num_total_params": 1_000_000,
        },
        "meta_info": {"dataset_info": {"sha": "d1"}, "revision": "abc"},
        "quality": quality,
        "cost": {
            **dict.fromkeys(("step_flops", "step_bytes", "step_memory_bytes", "step_seconds")),
            **steps,
            "step_memory_bytes": 1e8 + 40 * trained if trained else None,
        },
        "curve": [{"step": 40 * k, "value": 20.0 + 5 * k + seed} for k in range(5) if trained],
        "trials": [
            {"values": ["optimizer.lr=0.001"], "value": 41.0, "error": ""},
            {"values": ["optimizer.lr=0.1"], "value": None, "error": "loss is NaN"},
        ],
        "chosen": ["optimizer.lr=0.001"],
        "evaluations": {"val": 5, "test": 1},
        **changes,
    }


def failed(row: str, seed: int, error: str, **changes: Any) -> dict[str, Any]:
    content = cell(row, seed, {}, **changes)
    content["run_info"]["error_msg"] = error
    content["train_info"] = {"status": "failed"}
    for name in ("quality", "cost", "curve"):
        del content[name]
    return content


def ranked(right: Sequence[bool]) -> dict[str, Any]:
    """The quality of a search whose first answer is right for these clips."""
    ranks = [1 if hit else 7 for hit in right]
    ids = {"t2v": [f"clip{k}#0" for k in range(len(ranks))]}
    ids["v2t"] = [f"clip{k}" for k in range(len(ranks))]
    return {
        "metrics": {way: summarize(ranks) for way in ids},
        "ranks": dict.fromkeys(ids, ranks),
        "query_ids": ids,
    }


def answered(right: Sequence[float]) -> dict[str, Any]:
    return {
        "metrics": {"accuracy": {"overall": round(100 * float(np.mean(right)), 2)}},
        "correct": list(right),
        "question_ids": list(range(len(right))),
    }


def chance(share: float, row: str, seed: int, clips: int = CLIPS) -> list[bool]:
    """Hits of that share, at places that row and seed decide."""
    rng = np.random.default_rng([seed, *row.encode()])
    return [bool(hit) for hit in rng.permutation(clips) < share * clips]


def write(out: pathlib.Path, a_grid: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> None:
    """Writes the files of a grid, with their seals."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "grid.json", sealed(a_grid))
    for content in cells:
        folder = out / "results" / content["setting"]
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{content['row']}-seed{content['seed']}.json", sealed(content))


def made(
    out: pathlib.Path,
    shares: Mapping[str, float],
    seeds: Sequence[int] = (0, 1, 2),
    quality: Callable[[Sequence[bool]], dict[str, Any]] = ranked,
    **changes: Any,
) -> pathlib.Path:
    """Writes a grid whose rows are right for these shares of the clips."""
    cells = [
        cell(row, seed, quality(chance(share, row, seed)))
        for row, share in shares.items()
        for seed in seeds
    ]
    write(out, grid(rows=list(shares), seeds=list(seeds), **changes), cells)
    return out


def changed(path: pathlib.Path, **fields: Any) -> None:
    """Changes fields of a sealed file, and seals it again."""
    content = {**json.loads(path.read_text()), **fields}
    del content["sha256"]
    write_json(path, sealed(content))
