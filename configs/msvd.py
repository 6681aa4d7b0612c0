"""Text-video retrieval on MSVD, with a frozen CLIP or BLIP.

    python -m uniadapter_jax.prepare --config=configs/msvd.py --input=MSVD \
        --output=data/msvd
    python -m uniadapter_jax.main --config=configs/msvd.py --workdir=runs/msvd

Arguments: method and backbone, as in --config=configs/msvd.py:method=uniadapter, which takes a
BLIP (its records are others: data/msvd-32), or :method=lora,backbone=blip.

Data: `raw-captions.pkl` with `train_list.txt`, `val_list.txt`, `test_list.txt` (CLIP4Clip's
package): 1,200 / 100 / 670 clips with about 41 captions each; the clips (`<id>.avi`) from
www.cs.utexas.edu/users/ml/clamp/videoDescription. Every caption is a query; of a clip's captions
the best counts for V2T by the rule of CLIP4Clip (`max_pool`). The set's own validation split
chooses the checkpoint.

Cross-Modal Adapter: 12 frames, 32 words, r = 16, d_s = 16 (version 1 of the paper); 5 epochs. The
paper (arXiv 2211.09623v1) reports T2V R@1 47.4 with 1.00 M trained parameters, ViT-B/32; that is
the paper's number.

UniAdapter: its authors released nothing for video, so the recipe is our choice
(configs/msrvtt_uniadapter.py). The paper has no number for this set.
"""

from uniadapter_jax.config import recipes


def get_config(argument=None):
    """The config; see above."""
    choice = recipes.choose(argument, recipes.CLIP)
    if choice.family == recipes.CLIP:
        config = recipes.cross_modal_adapter(choice, "msvd", bottleneck=16, shared_dim=16)
    else:
        config = recipes.uniadapter_clips(choice, "msvd")
    config.data.val_split = "val"
    config.task.v2t = "max_pool"
    config.data.prepare.source = "msvd"
    return config
