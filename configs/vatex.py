"""Text-video retrieval on VATEX, with a frozen CLIP or BLIP.

    python -m uniadapter_jax.prepare --config=configs/vatex.py --input=VATEX \
        --output=data/vatex
    python -m uniadapter_jax.main --config=configs/vatex.py --workdir=runs/vatex

Arguments: method and backbone, as in --config=configs/vatex.py:method=uniadapter, which takes a
BLIP (its records are others: data/vatex-32), or :method=lora,backbone=blip.

Data: `vatex_training_v1.0.json` and `vatex_validation_v1.0.json` (eric-xw.github.io/vatex-website)
with the lists of the HGR split, `train_list.txt`, `val_list.txt`, `test_list.txt`: 25,991 / 1,500 /
1,500 clips of YouTube with ten English captions each, of which some are gone; prepare.json counts
those that were found. Another test list, `test1k5_sec_list.txt`, circulates; for that one,
--config.data.prepare.source=vatex_clip2video. The set's own validation split chooses the
checkpoint. Every caption is a query, and for V2T captions of a clip count as one by their best
(`max_pool`): our choice, since the paper does not say.

Cross-Modal Adapter: 12 frames, 32 words, r = 16, d_s = 64 (version 1 of the paper); 5 epochs. The
paper (arXiv 2211.09623v1) reports T2V R@1 59.3 with .99 M trained parameters, ViT-B/32; that is the
paper's number, and it does not say on which of the lists.

UniAdapter: its authors released nothing for video, so the recipe is our choice
(configs/msrvtt_uniadapter.py). The paper has no number for this set.
"""

from uniadapter_jax.config import recipes


def get_config(argument=None):
    """The config; see above."""
    choice = recipes.choose(argument, recipes.CLIP)
    if choice.family == recipes.CLIP:
        config = recipes.cross_modal_adapter(choice, "vatex", bottleneck=16, shared_dim=64)
    else:
        config = recipes.uniadapter_clips(choice, "vatex")
    config.data.val_split = "val"
    config.task.v2t = "max_pool"
    config.data.prepare.source = "vatex"
    return config
