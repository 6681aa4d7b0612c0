"""All methods for CLIP on emoji: two sizes, another vendor's pictures and animated clips.

    scripts/emoji_benchmark.sh PICTURES CLIPS OUT

makes the records and the backbones that this grid names, and runs it; `:size=mini` is a half of it.
Every method gets as many trials of its learning rate, around the rate that its kind needs: what
starts at zero is small and wants more than what the backbone has learnt.
"""

from uniadapter_jax.benchmark.grid import base_grid, claim, row, setting
from uniadapter_jax.config import parse_argument

# Candidates: for new parameters, and for the backbone's own.
NEW = ("optimizer.lr=0.001", "optimizer.lr=0.003", "optimizer.lr=0.01")
OWN = ("optimizer.lr=0.0001", "optimizer.lr=0.0003", "optimizer.lr=0.001")
COMMON = (
    *("data.captions=random", "task.similarity=mean_pool", "train.epochs=0", "train.steps=120"),
    *("train.checkpoint_every=40", "train.log_every=40", "train.batch_size=48"),
    *("optimizer.recipe=adamw_warmup_cosine", "data.words=24"),
)
CLIPS = (*COMMON, "data.records=data/emoji/clips/records", "data.frames=4", "data.val=40")
PICTURES = (
    *COMMON,
    *("data.records=data/emoji/pictures/records", "data.frames=1", "data.val=0"),
    *("data.val_split=val", "data.augment=crop_flip_color"),
)
SMALL = "method.bottleneck=8"


def get_config(argument=None):
    """The grid; `size` is mini, small or both."""
    chosen = parse_argument(argument, size="both")["size"]
    grid = base_grid("emoji")
    for size in ("mini", "small") if chosen == "both" else (chosen,):
        for name, fields in (("clips", CLIPS), ("pictures", PICTURES)):
            grid.settings[f"{name}-{size}"] = setting(
                "configs/msrvtt.py",
                *fields,
                argument=f"backbone=data/emoji/clip-{size}",
                title=f"Emoji {name}, {size} CLIP",
            )
    grid.trials = NEW
    rows = grid.rows
    rows.zero_shot = row("zero_shot")
    rows.projection = row("projection")
    rows.unipt = row("unipt")
    rows.full = row("full", trials=OWN)
    rows.partial = row("partial", trials=OWN)
    rows.bitfit = row("bitfit")
    rows.layer_norm = row("layer_norm")
    rows.lora = row("lora")
    rows.lora_shared = row("lora_shared")
    rows.dora = row("dora")
    rows.vera = row("vera", "method.rank=64")
    rows.ia3 = row("ia3")
    rows.ssf = row("ssf")
    rows.houlsby = row("houlsby", SMALL)
    rows.adaptformer = row("adaptformer", SMALL)
    rows.clip_adapter = row("clip_adapter")
    rows.coop = row("coop", "method.tokens=8")
    rows.vpt_deep = row("vpt_deep")
    rows.vl_prompt = row("vl_prompt")
    rows.maple = row("maple", "method.depth=2")
    rows.cross_modal_adapter = row("cross_modal_adapter", "method.init_std=0.03")
    rows["cma-unshared"] = row("cross_modal_adapter", "method.init_std=0.03", "method.shared_dim=0")
    rows.uniadapter = row("uniadapter", SMALL)
    grid.claims = (
        claim(
            "sharing",
            "A shared slice of the up-projections is better than none",
            "cross_modal_adapter",
            "cma-unshared",
            source="Cross-Modal Adapter, ablation of d_s",
        ),
        claim(
            "few-parameters",
            "Few trained parameters reach full fine-tuning, within 2 points",
            "cross_modal_adapter",
            "full",
            source="Cross-Modal Adapter, table 1",
            kind="not_worse",
            margin=2.0,
        ),
    )
    return grid
