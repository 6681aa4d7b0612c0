"""A small BLIP from random weights, trained on pictures with captions in Karpathy's layout.

    python -m uniadapter_jax.prepare --config=configs/blip_from_scratch.py --input=FLICKR30K \
        --output=data/pictures-blip --train-wordpiece=1500
    python -m uniadapter_jax.main --config=configs/blip_from_scratch.py --workdir=runs/blip \
        --save-backbone=weights/small-blip

As configs/clip_from_scratch.py, for everything that wants a BLIP: the directory that
--save-backbone writes is a backbone like any other. Width 128, 4 + 3 layers, 64 pixels, a
vocabulary of 1,500 entries (configs/backbones/pictures_blip.json). Contrast and matching without
momentum, negatives drawn uniformly: from nothing, hard ones teach nothing. The recipe is ours;
there is no published number.
"""

from uniadapter_jax.config import base_config


def get_config():
    """The config; see above."""
    config = base_config("full", "matching")
    config.name = "blip_from_scratch"
    config.backbone = "random:configs/backbones/pictures_blip.json"
    config.compute.dropout = 0.0
    config.task.momentum, config.task.queue = 0.0, 0
    config.task.negatives = "uniform"
    config.task.rerank_k = 16
    config.data.records = "data/pictures-blip"
    config.data.frames = 1
    config.data.words = 16
    config.data.captions = "random"
    config.data.augment = "crop_flip_color"
    config.data.prepare.source = "karpathy"
    config.data.prepare.short_side = 72
    config.optimizer.recipe = "adamw_warmup_cosine"
    config.optimizer.lr = 1e-3
    config.optimizer.weight_decay = 0.1
    config.train.batch_size = 96
    config.train.epochs = 0
    config.train.steps = 1000
    config.train.checkpoint_every = 100
    return config
