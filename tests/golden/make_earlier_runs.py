"""Makes `earlier_runs.zip`: small runs and adapters of this version, for later ones to go on with.

    PYTHONPATH=.:tests python tests/golden/make_earlier_runs.py OUTPUT.zip

Three runs (CLIP with the cross-modal adapter, BLIP for matching and VQA with UniAdapter) of 6 steps
on records of 14 clips. In the archive: the records and backbones' configs; of each run the workdir
as it was after step 3, what the whole run gave (losses, trained tensors, result), and its exported
adapter. `test_earlier_runs.py` resumes, exports and loads them.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import small_run
import tiny

from uniadapter_jax.config import base_config
from uniadapter_jax.prepare import prepare

CLIPS, STEPS, HALF = 14, 6, 3
RUNS = {
    "retrieval": ("cross_modal_adapter", "retrieval"),
    "matching": ("uniadapter", "matching"),
    "vqa": ("uniadapter", "vqa"),
}
CONFIG = """
import pathlib

from uniadapter_jax.config import base_config, parse_argument

ROOT = pathlib.Path(__file__).parent


def get_config(argument=None):
    chosen = parse_argument(argument, method="", task="")
    config = base_config(chosen["method"], chosen["task"])
    config.name = "earlier"
    family = "clip" if chosen["task"] == "retrieval" else "blip"
    config.backbone = f"random:{ROOT / family}.json"
    config.data.records = str(ROOT / "records")
    config.data.frames, config.data.words, config.data.workers = 2, 10, 0
    config.method.bottleneck = 4
    if chosen["task"] == "matching":
        config.task.queue, config.task.frame_weights = 8, True
        config.task.rerank_k, config.task.rerank_rows = 2, 8
    if chosen["task"] == "vqa":
        config.task.metric, config.data.answer_words = "exact", 10
    config.optimizer.lr = 1e-3
    config.train.batch_size, config.train.steps = 4, 6
    config.train.checkpoint_every, config.train.keep = 3, 2
    config.eval.batch_size = 4
    return config
"""


def main_of(module: str, *arguments: str) -> None:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-m", f"uniadapter_jax.{module}", *arguments]
    subprocess.run(command, env=environment, check=True)


def inputs(root: pathlib.Path) -> None:
    """Records, configs of backbones, and the config of the runs."""
    manifest = small_run._draw_clips(root / "media")
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    chosen = [line for line in lines if line["path"].endswith("jpg")][:CLIPS]
    for i, line in enumerate(chosen):
        line["split"] = "train" if i < CLIPS - 4 else "test"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in chosen))
    settings = small_run.PrepareSettings.from_config(base_config().data.prepare)
    sizes = {"tokenizer_size": 520, "wordpiece_size": small_run.WORDPIECES}
    prepare(settings, str(manifest), str(root / "records"), **sizes)
    shutil.rmtree(root / "media")
    tokenizer = small_run.load_tokenizer(root / "records" / "tokenizer")
    config = tiny.hf_config(vision_layers=2, text_layers=1)
    config["text_config"] |= {
        "vocab_size": tokenizer.vocab_size,
        "eos_token_id": tokenizer.eos_id,
        "max_position_embeddings": 16,
    }
    (root / "clip.json").write_text(json.dumps(config))
    ids = {
        "vocab_size": small_run.WORDPIECES + 2,
        "bos_token_id": small_run.WORDPIECES,
        "sep_token_id": 3,
    }
    blip = tiny.blip_config(**ids, max_position_embeddings=16)
    (root / "blip.json").write_text(json.dumps(blip))
    (root / "config.py").write_text(CONFIG)


def make_run(root: pathlib.Path, name: str) -> None:
    method, task = RUNS[name]
    work = root / name
    config = f"--config={root / 'config.py'}:method={method},task={task}"
    main_of("main", config, f"--workdir={work}")
    main_of("export", f"--workdir={work}", f"--to={root / name}_adapter")
    trained = {
        key: leaf for key, leaf in small_run.checkpoint(work, STEPS).items() if "trainable" in key
    }
    np.savez(root / f"{name}.npz", losses=np.array(small_run.losses(work)), **trained)
    shutil.copy(work / "result.json", root / f"{name}_result.json")
    # As a kill after step 3 would have left it.
    shutil.rmtree(work / "checkpoints" / str(STEPS))
    (work / "result.json").unlink()
    for path in work.glob("*-test.json*"):
        path.unlink()
    kept = [
        line
        for line in (work / "metrics.jsonl").read_text().splitlines()
        if json.loads(line).get("step", 0) <= HALF
    ]
    (work / "metrics.jsonl").write_text("".join(f"{line}\n" for line in kept))


def main() -> None:
    output = pathlib.Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory) / "earlier"
        root.mkdir()
        inputs(root)
        for name in RUNS:
            make_run(root, name)
        with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(root.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    archive.write(path, path.relative_to(root))


if __name__ == "__main__":
    main()
