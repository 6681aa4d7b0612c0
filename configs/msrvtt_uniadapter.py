"""Text-video retrieval on MSR-VTT with UniAdapter on a frozen BLIP, re-ranked.

    python -m uniadapter_jax.convert model_base.pth weights/blip-base-224 --image-size=224 \
        --tokenizer=vocab.txt
    python -m uniadapter_jax.prepare --config=configs/msrvtt_uniadapter.py --input=MSRVTT \
        --output=data/msrvtt-32
    python -m uniadapter_jax.main --config=configs/msrvtt_uniadapter.py --workdir=runs/msrvtt_blip

Arguments: method (uniadapter, lora, full, projection, zero_shot) and backbone, as in
--config=configs/msrvtt_uniadapter.py:method=lora.

Data: as configs/msrvtt.py (9k / 1k-A split); 32 frames of each clip are stored, the middle ones of
equal segments. Weights: BLIP's pre-trained ViT-B, and `vocab.txt` of bert-base-uncased.

UniAdapter's authors released nothing for video, so the recipe is our choice, after Aurora, which is
built on their code: 224 pixels, not cropped; 8 frames, drawn anew in training (Aurora draws them at
test, too; here they are spread evenly), 40 words, global batch 64, lr 1e-4, 5 epochs, AdamW with
decay .05, cosine per epoch; queue 57,600, alpha .4, the best 128 candidates re-ranked. Frame-aware
attention is the paper's. r = 128 is our choice. The paper (arXiv 2302.06605, abstract) reports T2V
R@1 49.7 with 2.2 % of the parameters trained; that is the paper's number. Here 500 training clips
choose the checkpoint.
"""

from uniadapter_jax.config import recipes


def get_config(argument=None):
    """The config; see above."""
    choice = recipes.choose(argument, recipes.BLIP)
    config = recipes.uniadapter_clips(choice, "msrvtt")
    config.name = f"msrvtt-blip-{choice.method}"
    config.data.val = 500
    config.data.prepare.source = "msrvtt"
    return config
