"""Makes the tiny backbones that ship with the package, from nothing but generated pictures.

    python scripts/make_tiny_backbone.py --family=clip
    python scripts/make_tiny_backbone.py --family=blip

Seed 0 everywhere. It goes the way of a user's own data: pictures and a manifest, records and a
tokenizer by `prepare`, training with method=full from configs/backbones/tiny_clip.json or
tiny_blip.json by the common loop, and the backbone that --save-backbone would write. What the
package gets of it are the files that the loader reads, tensors as float16: config.json,
model.safetensors, and tokenizer.json or vocab.txt. About ten minutes on two cores for a CLIP,
twenty for a BLIP; stopped, the same command goes on.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import pathlib

import numpy as np
import safetensors.numpy
from absl import flags
from ml_collections import ConfigDict

from uniadapter_jax.common.cores import usable_cores
from uniadapter_jax.common.errors import UserError, run_app
from uniadapter_jax.common.files import write_whole
from uniadapter_jax.config import base_config
from uniadapter_jax.data.preparation import toy
from uniadapter_jax.data.preparation.clips import PrepareSettings
from uniadapter_jax.parallel import launch
from uniadapter_jax.parallel.progress import Progress
from uniadapter_jax.prepare import prepare
from uniadapter_jax.runs.run import run

ROOT = pathlib.Path(__file__).resolve().parent.parent
# CLIP's: 512 bytes, BOS, EOS, and merges that leave a token or two to each word. BLIP's without
# [DEC] and [ENC]: special tokens, letters, and merges that make whole words.
VOCABULARY = {"clip": 600, "blip": 250}
SIZE_OF = {"clip": "tokenizer_size", "blip": "wordpiece_size"}  # arguments of `prepare`
TOKENIZER_FILE = {"clip": "tokenizer.json", "blip": "vocab.txt"}
PICTURES, TEST_PICTURES = 20_000, 512

_FAMILY = flags.DEFINE_enum("family", "clip", ["clip", "blip"], "Which of the two.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Pictures, records, checkpoints; default runs/tiny_FAMILY."
)
_OUTPUT = flags.DEFINE_string("output", None, "The directory to replace; default: the package's.")


def pretraining_config(family: str, records: str) -> ConfigDict:
    """Training of every parameter on single pictures: contrastive, for a BLIP also by matching."""
    config = base_config("full", "retrieval" if family == "clip" else "matching")
    config.name = f"tiny_{family}"
    config.backbone = f"random:{ROOT / 'configs' / 'backbones' / f'tiny_{family}.json'}"
    if family == "clip":
        config.task.similarity = "mean_pool_unit"
    else:
        config.task.momentum, config.task.queue = 0.0, 0
        config.task.negatives = "uniform"
        config.task.rerank_k = 16
        config.compute.dropout = 0.0
    config.data.records = records
    config.data.frames = 1
    config.data.words = 24
    config.data.prepare.short_side = toy.PICTURE_SIDE
    config.optimizer.recipe = "adamw_warmup_cosine"
    config.optimizer.lr = 1e-3
    config.optimizer.weight_decay = 0.1
    config.optimizer.warmup = 0.07
    config.train.batch_size = 128 if family == "clip" else 64
    config.train.steps = 1000 if family == "clip" else 1500
    config.train.log_every = 50
    config.train.checkpoint_every = 200
    return config


def make_records(family: str, workdir: pathlib.Path, config: ConfigDict) -> None:
    """Pictures, then records with a tokenizer; what is there already is kept."""
    raw = workdir / "raw"
    if not (raw / "manifest.jsonl").is_file():
        progress = Progress("drawing", PICTURES + TEST_PICTURES, "pictures")
        for _ in toy.write_pictures(str(raw), PICTURES, TEST_PICTURES):
            progress.advance(1)
    prepare(
        PrepareSettings.from_config(config.data.prepare),
        str(raw),
        config.data.records,
        workers=usable_cores(),
        **{SIZE_OF[family]: VOCABULARY[family]},
    )


def ship(family: str, backbone: pathlib.Path, output: pathlib.Path) -> None:
    """Copies what the loader reads; half precision is a rounding that training does not notice."""
    output.mkdir(parents=True, exist_ok=True)
    tensors = safetensors.numpy.load_file(backbone / "model.safetensors")
    narrow = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    data = safetensors.numpy.save(narrow, metadata={"format": "pt"})
    write_whole(output / "model.safetensors", data)
    for name in ("config.json", TOKENIZER_FILE[family]):
        write_whole(output / name, (backbone / name).read_bytes())


def main(argv: list[str]) -> int:
    """All of it."""
    del argv
    launch.use_compile_cache()
    family = _FAMILY.value
    workdir = pathlib.Path(_WORKDIR.value or f"runs/tiny_{family}").absolute()
    assets = ROOT / "uniadapter_jax" / "assets"
    output = pathlib.Path(_OUTPUT.value or assets / f"tiny_{family}")
    backbone = workdir / "backbone"
    config = pretraining_config(family, str(workdir / "records"))
    make_records(family, workdir, config)
    if backbone.exists():
        raise UserError(f"{backbone} is there already; remove it to train again")
    run(config, workdir / "run", str(backbone))
    ship(family, backbone, output)
    size = sum(file.stat().st_size for file in output.iterdir())
    print(f"wrote {output}: {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    run_app(main)
