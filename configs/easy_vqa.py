"""Visual question answering from scratch: a tiny BLIP learns easy-VQA.

    pip install easy-vqa
    DATA=$(python -c "import easy_vqa, os; print(os.path.dirname(easy_vqa.__file__))")/data
    python -m uniadapter_jax.prepare --config=configs/easy_vqa.py --input=$DATA \
        --output=data/easy-vqa --train-wordpiece=126
    python -m uniadapter_jax.main --config=configs/easy_vqa.py --workdir=runs/easy_vqa

Data: 4,000 + 1,000 pictures of one shape, 64 pixels wide, with 38,575 + 9,673 questions that have
one of 13 answers. Backbone: random weights, width 64, 3 + 2 layers
(configs/backbones/small_blip.json), whose vocabulary is the 126 entries learned above, [DEC] and
[ENC]. Everything trains. The recipe is ours; there is no published number.

Beside it: 67.0 % is the most that questions alone give away (scripts/question_only.py), and 84.7 %
what one gets who knows the colour but not the shape.
"""

from uniadapter_jax.config import base_config


def get_config():
    """The config; see above."""
    config = base_config("full", "vqa")
    config.name = "easy_vqa"
    config.backbone = "random:configs/backbones/small_blip.json"
    config.compute.dropout = 0.0
    config.task.metric = "exact"
    config.data.records = "data/easy-vqa"
    config.data.frames = 1
    config.data.words = 13
    config.data.preprocess = "blip"
    config.data.answers = 1
    config.data.answer_words = 3
    config.data.prepare.source = "easy_vqa"
    config.data.prepare.short_side = 64
    config.optimizer.recipe = "adamw_warmup_cosine"
    config.optimizer.lr = 2e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup = 0.05
    config.train.batch_size = 128
    config.train.epochs = 0
    config.train.steps = 3500
    config.train.log_every = 100
    config.train.checkpoint_every = 500
    config.eval.batch_size = 100
    return config
