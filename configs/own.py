"""Your own clips and pictures, tens to thousands of them, with a frozen CLIP.

    python -m uniadapter_jax.prepare --config=configs/own.py --from-folder=MY_CLIPS
    python -m uniadapter_jax.main --config=configs/own.py --workdir=runs/own
    python -m uniadapter_jax.index --input=MY_CLIPS --output=data/adapted --adapter=runs/own

Arguments: method and backbone, as in --config=configs/own.py:method=lora,backbone=weights/clip-b16;
with backbone=blip, or method=uniadapter, it is a BLIP, re-ranked.

Data: a folder with videos and pictures, with captions in files of the same name beside them
(docs/data.md). The first command writes MY_CLIPS/manifest.jsonl, which you may look through and
edit, and the records.
Weights: openai/clip-vit-base-patch32, downloaded once; or any CLIP in HuggingFace's layout.

The recipe is ours, and untested beyond small sets: batches of 16, so that few clips fill one; lr
1e-4, since few clips make few steps; 10 epochs, of which the best on `val` is tested. With fewer
than 16 captions to train on, set --config.train.batch_size; without a split `val`,
--config.data.val_split=
"""

from uniadapter_jax.config import recipes


def get_config(argument=None):
    """The config; see above."""
    choice = recipes.choose(argument, recipes.CLIP)
    if choice.family == recipes.CLIP:
        config = recipes.cross_modal_adapter(choice, "own", bottleneck=8, shared_dim=16)
    else:
        config = recipes.uniadapter_clips(choice, "own")
        config.data.records = "data/own"
        config.data.prepare.sampling = "fps"
        config.task.queue, config.task.rerank_k = 0, 32
    config.data.val_split = "val"
    config.data.prepare.source = "manifest"
    config.optimizer.lr = 1e-4
    config.train.batch_size = 16
    config.train.epochs = 10
    return config
