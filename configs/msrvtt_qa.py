"""Questions about videos, MSRVTT-QA, with UniAdapter on a frozen BLIP.

    python -m uniadapter_jax.convert model_base_capfilt_large.pth weights/blip-base-capfilt-224 \
        --image-size=224 --tokenizer=vocab.txt
    python -m uniadapter_jax.prepare --config=configs/msrvtt_qa.py --input=MSRVTT_QA \
        --output=data/msrvtt-qa
    python -m uniadapter_jax.main --config=configs/msrvtt_qa.py --workdir=runs/msrvtt_qa

Arguments: method (uniadapter, lora, full, zero_shot) and backbone, as in
--config=configs/msrvtt_qa.py:method=lora.

Data: the clips of MSR-VTT and the annotations in one of three layouts (docs/data.md): 6,513 / 497 /
2,990 clips, about 244,000 questions with one answer. 32 frames of each clip are stored. Weights:
BLIP's pre-trained ViT-B (with CapFilt), and `vocab.txt` of bert-base-uncased.

UniAdapter's authors released nothing for video, so the recipe is our choice, after Aurora, which is
built on their code: 224 pixels, not cropped; 8 frames, drawn anew in training, global batch 96, lr
2e-5, 5 epochs, AdamW with decay .05, cosine per epoch; answers are generated with 3 beams, since a
ranked list would give up answers that train does not have. Frame-aware attention and r = 512 are
our choice. Accuracy is exact match over all questions of test, none left out. A listing gives 44.7
as the paper's; we could not check it against the paper.
"""

from uniadapter_jax.config import base_config, parse_argument


def get_config(argument=None):
    """The config; see above."""
    chosen = parse_argument(argument, method="uniadapter", backbone="weights/blip-base-capfilt-224")
    config = base_config(chosen["method"], "vqa")
    config.name = f"msrvtt-qa-{chosen['method']}"
    config.backbone = chosen["backbone"]
    if chosen["method"] == "uniadapter":
        config.method.bottleneck = 512
    config.compute.remat = "full"
    config.task.frame_weights = True
    config.task.inference = "generate"
    config.task.metric = "exact"
    config.data.records = "data/msrvtt-qa"
    config.data.frames = 8
    config.data.sampling = "random"
    config.data.words = 35
    config.data.resize = "squash"
    config.data.preprocess = "blip"
    config.data.max_words = 50
    config.data.answers = 1
    config.data.prepare.source = "msrvtt_qa"
    config.data.prepare.sampling = "middle"
    config.data.prepare.frames = 32
    config.data.prepare.short_side = 240  # as most clips are
    config.optimizer.recipe = "adamw_cosine_per_epoch"
    config.optimizer.lr = 2e-5
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup = 0.0
    config.optimizer.clip_norm = 0.0
    config.train.batch_size = 96
    config.train.epochs = 5
    return config
