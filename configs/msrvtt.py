"""Text-video retrieval on MSR-VTT with a frozen CLIP.

    python -m uniadapter_jax.prepare --config=configs/msrvtt.py --input=MSRVTT --output=data/msrvtt
    python -m uniadapter_jax.main --config=configs/msrvtt.py --workdir=runs/msrvtt

Arguments: method (cross_modal_adapter, lora, full, projection, zero_shot) and backbone, as in
--config=configs/msrvtt.py:method=lora,backbone=openai/clip-vit-base-patch16.

Data: the clips and `MSRVTT_data.json`, `MSRVTT_train.9k.csv`, `MSRVTT_JSFUSION_test.csv` (9k / 1k-A
split), or another of MSR-VTT's layouts (docs/data.md). Weights: openai/clip-vit-base-patch32, which
is downloaded once, or any CLIP in HuggingFace's layout.

The recipe is the released one of Cross-Modal Adapter: 12 frames at 1 fps, 32 words, every caption
a sample, global batch 128, lr 1e-5, 5 epochs, r = 8, d_s = 16. The paper (arXiv 2211.09623v1,
Table 1) reports T2V R@1 45.4 with it, ViT-B/32, .52 M trained parameters; that is the paper's
number, and its checkpoint was chosen on the test set. Here 500 training clips choose it.
"""

from uniadapter_jax.config import base_config, parse_argument


def get_config(argument=None):
    """The config; see above."""
    chosen = parse_argument(
        argument,
        method="cross_modal_adapter",
        backbone="openai/clip-vit-base-patch32",
    )
    config = base_config(chosen["method"])
    config.name = f"msrvtt-{chosen['method']}"
    config.backbone = chosen["backbone"]
    config.data.records = "data/msrvtt"
    config.data.val = 500
    config.data.prepare.source = "msrvtt"
    return config
