"""Paragraph-to-video retrieval on ActivityNet Captions, with a frozen CLIP or BLIP.

    python -m uniadapter_jax.prepare --config=configs/activitynet.py --input=ACTIVITYNET \
        --output=data/activitynet
    python -m uniadapter_jax.main --config=configs/activitynet.py --workdir=runs/activitynet

Arguments: method and backbone, as in --config=configs/activitynet.py:method=uniadapter, which takes
a BLIP (its records are others: data/activitynet-32), or :method=lora,backbone=blip.

Data: `train.json` and `val_1.json` of ActivityNet Captions
(cs.stanford.edu/people/ranjaykrishna/densevid): 10,009 and 4,917 videos of YouTube, of which some
are gone; prepare.json counts those that were found. All sentences about a video are one text. 500
training videos choose the checkpoint, which is our choice.

Cross-Modal Adapter: 64 frames, 64 words, r = 16, d_s = 512, 20 epochs (version 1 of the paper). The
paper (arXiv 2211.09623v1) reports T2V R@1 41.5 with .81 M trained parameters, ViT-B/32; that is the
paper's number.

UniAdapter: its authors released nothing for video, so the recipe is our choice
(configs/msrvtt_uniadapter.py). The paper has no number for this set.
"""

from uniadapter_jax.config import recipes


def get_config(argument=None):
    """The config; see above."""
    choice = recipes.choose(argument, recipes.CLIP)
    if choice.family == recipes.CLIP:
        config = recipes.cross_modal_adapter(choice, "activitynet", bottleneck=16, shared_dim=512)
        config.data.frames = config.data.words = 64
        config.train.epochs = 20
    else:
        config = recipes.uniadapter_clips(choice, "activitynet", frames=16, words=64)
    config.data.val = 500
    config.data.prepare.source = "activitynet"
    return config
