"""A small CLIP from random weights, trained on pictures with captions in Karpathy's layout.

    python -m uniadapter_jax.prepare --config=configs/clip_from_scratch.py --input=FLICKR30K \
        --output=data/pictures --train-tokenizer=1500
    python -m uniadapter_jax.main --config=configs/clip_from_scratch.py --workdir=runs/pictures \
        --save-backbone=weights/small-clip

For trying everything else without downloading weights: the directory that --save-backbone writes is
a backbone like any other. Width 128, 4 + 3 layers, 64 pixels (configs/backbones/small_clip.json);
other sizes by --config.backbone=random:<config.json>. Data: `dataset_flickr30k.json` (or
`dataset_coco.json`) and its pictures. The recipe is ours; there is no published number.
"""

from uniadapter_jax.config import base_config


def get_config():
    """The config; see above."""
    config = base_config("full")
    config.name = "clip_from_scratch"
    config.backbone = "random:configs/backbones/small_clip.json"
    config.task.similarity = "mean_pool"
    config.task.duplicates = "avoid"
    config.data.records = "data/pictures"
    config.data.frames = 1
    config.data.words = 24
    config.data.captions = "random"
    config.data.augment = "crop_flip_color"
    config.data.prepare.source = "karpathy"
    config.data.prepare.short_side = 72
    config.optimizer.recipe = "adamw_warmup_cosine"
    config.optimizer.lr = 1e-3
    config.optimizer.weight_decay = 0.1
    config.train.batch_size = 256
    config.train.epochs = 0
    config.train.steps = 500
    config.train.checkpoint_every = 100
    return config
