"""Paragraph-to-video retrieval on DiDeMo, with a frozen CLIP or BLIP.

    python -m uniadapter_jax.prepare --config=configs/didemo.py --input=DIDEMO \
        --output=data/didemo
    python -m uniadapter_jax.main --config=configs/didemo.py --workdir=runs/didemo

Arguments: method and backbone, as in --config=configs/didemo.py:method=uniadapter, which takes a
BLIP (its records are others: data/didemo-32), or :method=lora,backbone=blip.

Data: `train_data.json`, `val_data.json`, `test_data.json` of the authors
(github.com/LisaAnne/LocalizingMoments) with CLIP4Clip's `train_list.txt`, `val_list.txt`,
`test_list.txt`: 8,392 / 1,065 / 1,004 videos; videos from the links in these files. All sentences
of a video are one text; the first 31 s are the clip. The set's own validation split chooses the
checkpoint, which is our choice: the paper's code chooses on the test split.

Cross-Modal Adapter: 64 frames, 64 words, r = 8, d_s = 8 (version 1 of the paper); 5 epochs. The
paper (arXiv 2211.09623v1) reports T2V R@1 45.0 with .52 M trained parameters, ViT-B/32; that is the
paper's number.

UniAdapter: its authors released nothing for video, so the recipe is our choice
(configs/msrvtt_uniadapter.py). No number of the paper for this set is known to us.
"""

from uniadapter_jax.config import recipes


def get_config(argument=None):
    """The config; see above."""
    choice = recipes.choose(argument, recipes.CLIP)
    if choice.family == recipes.CLIP:
        config = recipes.cross_modal_adapter(choice, "didemo", bottleneck=8, shared_dim=8)
        config.data.frames = config.data.words = 64
    else:
        config = recipes.uniadapter_clips(choice, "didemo", words=64)
        config.data.frames = 16  # of a text that names several moments
    config.data.val_split = "val"
    config.data.prepare.source = "didemo"
    return config
