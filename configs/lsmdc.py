"""Text-video retrieval on LSMDC, with a frozen CLIP or BLIP.

    python -m uniadapter_jax.prepare --config=configs/lsmdc.py --input=LSMDC \
        --output=data/lsmdc
    python -m uniadapter_jax.main --config=configs/lsmdc.py --workdir=runs/lsmdc

Arguments: method and backbone, as in --config=configs/lsmdc.py:method=uniadapter, which takes a
BLIP (its records are others: data/lsmdc-32), or :method=lora,backbone=blip.

Data: `LSMDC16_annos_training.csv`, `LSMDC16_annos_val.csv`, `LSMDC16_challenge_1000_publictect.csv`
and the clips, by licence from the Max Planck Institute for Informatics: 101,079 / 7,408 / 1,000
lines. The set's own validation split chooses the checkpoint.

Cross-Modal Adapter: the paper has no number for this set; 12 frames, 32 words, r = 8, d_s = 16 and
5 epochs are those of its MSR-VTT, which is our choice.

UniAdapter: its authors released nothing for video, so the recipe is our choice
(configs/msrvtt_uniadapter.py). The paper has no number for this set.
"""

from uniadapter_jax.config import recipes


def get_config(argument=None):
    """The config; see above."""
    choice = recipes.choose(argument, recipes.CLIP)
    if choice.family == recipes.CLIP:
        config = recipes.cross_modal_adapter(choice, "lsmdc", bottleneck=8, shared_dim=16)
    else:
        config = recipes.uniadapter_clips(choice, "lsmdc")
    config.data.val_split = "val"
    config.data.prepare.source = "lsmdc"
    return config
