"""Image-text retrieval on COCO (Karpathy split) with UniAdapter on a frozen BLIP, re-ranked.

    python -m uniadapter_jax.convert model_base.pth weights/blip-base-384 --image-size=384 \
        --tokenizer=vocab.txt
    python -m uniadapter_jax.prepare --config=configs/coco.py --input=COCO --output=data/coco
    python -m uniadapter_jax.main --config=configs/coco.py --workdir=runs/coco

Arguments: method (uniadapter, lora, full, projection, zero_shot) and backbone, as in
--config=configs/coco.py:method=lora,backbone=weights/blip-base-384.

Data: the pictures (train2014/, val2014/) and `dataset_coco.json`, or BLIP's
`coco_karpathy_{train,val,test}.json`: 113,287 / 5,000 / 5,000 pictures. All captions that the file
has are kept, which gives 25,010 texts in the test split; five per picture would give 25,000.
Weights: BLIP's pre-trained ViT-B, and `vocab.txt` of bert-base-uncased.

The recipe is the released one of UniAdapter: 384 pixels, not cropped; global batch 256, lr 1e-5,
6 epochs, AdamW with decay .05 on everything, cosine per epoch without warm-up; r = 512, queue
57,600, alpha .4, momentum .995; the best 256 candidates are scored by the matching head alone. The
start is ours: the released configs name a file that was fine-tuned for VQA. The released code tests
every epoch; here the last counts. No number of the paper for this set is known to us.
"""

from uniadapter_jax.config import base_config, parse_argument


def get_config(argument=None):
    """The config; see above."""
    chosen = parse_argument(argument, method="uniadapter", backbone="weights/blip-base-384")
    config = base_config(chosen["method"], "matching")
    config.name = f"coco-{chosen['method']}"
    config.backbone = chosen["backbone"]
    if chosen["method"] == "uniadapter":
        config.method.bottleneck = 512
    config.compute.remat = "full"
    config.task.rerank_k = 256
    config.data.records = "data/coco"
    config.data.frames = 1
    config.data.words = 35
    config.data.resize = "squash"
    config.data.augment = "blip"
    config.data.preprocess = "blip"
    config.data.max_words = 30
    config.data.prepare.source = "karpathy"
    config.data.prepare.short_side = 480  # as almost all pictures are
    config.optimizer.recipe = "adamw_cosine_per_epoch"
    config.optimizer.lr = 1e-5
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup = 0.0
    config.optimizer.clip_norm = 0.0
    config.train.batch_size = 256
    config.train.epochs = 6
    config.eval.batch_size = 64
    return config
