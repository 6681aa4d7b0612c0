"""All methods for BLIP on emoji: another vendor's pictures and animated clips, re-ranked.

    scripts/emoji_blip_benchmark.sh PICTURES CLIPS OUT

makes the records and the backbone that this grid names, and runs it. Rows and candidates are those
of configs/benchmark/emoji.py where they fit; beside them UniAdapter without what its paper adds:
with a down-projection for each modality (at equal parameters: 7,640 and 7,665), without the query
residual, and, for clips, without weights of frames.
"""

from uniadapter_jax.benchmark.grid import base_grid, claim, row, setting

# Candidates: for new parameters, and for the backbone's own.
NEW = ("optimizer.lr=0.001", "optimizer.lr=0.003", "optimizer.lr=0.01")
OWN = ("optimizer.lr=0.0001", "optimizer.lr=0.0003", "optimizer.lr=0.001")
COMMON = (
    *("task.momentum=0.0", "task.queue=0", "task.rerank_k=16", "data.captions=random"),
    *("compute.remat=none", "compute.dropout=0.0", "data.words=16", "data.prefetch_mb=64"),
    *("train.epochs=0", "train.steps=120", "train.checkpoint_every=40", "train.log_every=40"),
    *("train.batch_size=48", "optimizer.recipe=adamw_warmup_cosine", "optimizer.warmup=0.1"),
)
CLIPS = (*COMMON, "data.records=data/emoji/clips/records", "data.frames=4", "data.val=40")
PICTURES = (
    *(*COMMON, "data.records=data/emoji/pictures/records", "data.frames=1", "data.val=0"),
    *("data.val_split=val", "data.augment=crop_flip_color", "data.resize=crop"),
)
SMALL, TWELVE = "method.bottleneck=8", "method.bottleneck=12"
SEPARATE = ("method.share_down=False", "method.bottleneck=7")


def get_config(argument=None):
    """The grid."""
    del argument
    grid = base_grid("emoji-blip")
    for name, fields in (("clips", CLIPS), ("pictures", PICTURES)):
        grid.settings[f"{name}-blip"] = setting(
            "configs/msrvtt_uniadapter.py",
            *fields,
            argument="backbone=data/emoji/blip-mini",
            title=f"Emoji {name}, mini BLIP, re-ranked",
        )
    grid.trials = NEW
    rows = grid.rows
    rows.zero_shot = row("zero_shot")
    rows.projection = row("projection")
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
    rows.vpt_deep = row("vpt_deep")
    rows.cross_modal_adapter = row("cross_modal_adapter", "method.init_std=0.03")
    rows.uniadapter = row("uniadapter", TWELVE)
    rows["uniadapter-separate"] = row("uniadapter", *SEPARATE)
    rows["uniadapter-no-residual"] = row("uniadapter", TWELVE, "method.query_residual=False")
    rows["uniadapter-plain-frames"] = row("uniadapter", TWELVE, "task.frame_weights=False")
    grid.claims = (
        claim(
            "sharing",
            "One down-projection for all modalities is better than one each, at equal parameters",
            "uniadapter",
            "uniadapter-separate",
            source="UniAdapter, ablation of weight sharing",
        ),
        claim(
            "query-residual",
            "The query residual helps",
            "uniadapter",
            "uniadapter-no-residual",
            source="UniAdapter, section 3.3",
        ),
        claim(
            "frame-aware",
            "Weighing the frames by the text helps",
            "uniadapter",
            "uniadapter-plain-frames",
            source="UniAdapter, section 3.4",
            settings=("clips-blip",),
        ),
        claim(
            "few-parameters",
            "Few trained parameters reach full fine-tuning, within 2 points",
            "uniadapter",
            "full",
            source="UniAdapter, abstract",
            kind="not_worse",
            margin=2.0,
        ),
    )
    return grid
