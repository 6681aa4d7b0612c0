"""Settings, rows and claims which the grids of small models (configs/benchmark/emoji.py ...) share.

Every method has as many candidates of its learning rate, around the rate that its kind needs: what
starts at zero is small, and wants more than what the backbone has learnt.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from uniadapter_jax.benchmark.grid import claim, row, setting

# Candidates: for new parameters, and for the backbone's own.
NEW = ("optimizer.lr=0.001", "optimizer.lr=0.003", "optimizer.lr=0.01")
OWN = ("optimizer.lr=0.0001", "optimizer.lr=0.0003", "optimizer.lr=0.001")
SMALL, TWELVE = "method.bottleneck=8", "method.bottleneck=12"
# As many parameters as a shared one of 12 has, in layers of width 64 (3 of vision, 2 of text):
# 7,665 and 7,640.
SEPARATE = ("method.share_down=False", "method.bottleneck=7")
FOR_TWO_TOWERS = ("unipt", "clip_adapter", "coop", "vl_prompt", "maple")  # not for a BLIP

# What scripts/emoji_benchmark.sh prepares, and how a CLIP adapts to it.
_COMMON = (
    *("data.captions=random", "task.similarity=mean_pool", "data.words=24", "train.epochs=0"),
    *("train.checkpoint_every=40", "train.log_every=40", "train.validate_every=20"),
    "optimizer.recipe=adamw_warmup_cosine",
)
_PICTURES = (
    *(*_COMMON, "train.steps=120", "train.batch_size=48"),
    *("data.records=data/emoji/pictures/records", "data.frames=1", "data.val=0"),
    *("data.val_split=val", "data.augment=crop_flip_color"),
)
_NEGATIVES = (  # far from what the backbone knows, and the same subjects
    *(*_PICTURES, "data.records=data/emoji/negatives/records", "data.augment=crop_flip"),
)
_CLIPS = (  # 182 to train on, so an epoch has five steps
    *(*_COMMON, "train.steps=80", "train.batch_size=32"),
    *("data.records=data/emoji/clips/records", "data.frames=2", "data.val=40"),
    "data.cache=auto",  # what is frozen is computed once for all seeds and methods that allow it
)
EMOJI = {"negatives": _NEGATIVES, "pictures": _PICTURES, "clips": _CLIPS}


def add_emoji(grid: ConfigDict, data: str, size: str) -> None:
    """Adds the setting of a CLIP that adapts to pictures, negatives or clips of emoji."""
    grid.settings[f"{data}-{size}"] = setting(
        "configs/msrvtt.py",
        *EMOJI[data],
        argument=f"backbone=data/emoji/clip-{size}",
        title=f"Emoji {data}, {size} CLIP",
    )


def add_methods(grid: ConfigDict, *, without: tuple[str, ...] = ()) -> None:
    """Fills in the rows of all methods but some, and the candidates."""
    grid.trials = NEW
    rows = {
        "zero_shot": row("zero_shot"),
        "projection": row("projection"),
        "unipt": row("unipt"),
        "full": row("full", trials=OWN),
        "partial": row("partial", trials=OWN),
        "bitfit": row("bitfit"),
        "layer_norm": row("layer_norm"),
        "lora": row("lora"),
        "lora_shared": row("lora_shared"),
        "dora": row("dora"),
        "vera": row("vera", "method.rank=64"),
        "ia3": row("ia3"),
        "ssf": row("ssf"),
        "houlsby": row("houlsby", SMALL),
        "adaptformer": row("adaptformer", SMALL),
        "clip_adapter": row("clip_adapter"),
        "coop": row("coop", "method.tokens=8"),
        "vpt_deep": row("vpt_deep"),
        "vl_prompt": row("vl_prompt"),
        "maple": row("maple", "method.depth=2"),
        "cross_modal_adapter": row("cross_modal_adapter", "method.init_std=0.03"),
    }
    for name, of in rows.items():
        if name not in without:
            grid.rows[name] = of


def few_parameters(method: str, source: str) -> ConfigDict:
    """The claim that a method reaches full fine-tuning."""
    return claim(
        "few-parameters",
        "Few trained parameters reach full fine-tuning, within 2 points",
        method,
        "full",
        source=source,
        kind="not_worse",
        margin=2.0,
    )


def add_uniadapter(grid: ConfigDict, *, clips: tuple[str, ...] = ()) -> None:
    """Adds UniAdapter in BLIP with and without what its paper adds, and the claims about that.

    clips: settings with clips of several frames, where these are weighed.
    """
    grid.rows.uniadapter = row("uniadapter", TWELVE)
    grid.rows["uniadapter-separate"] = row("uniadapter", *SEPARATE)
    grid.rows["uniadapter-no-residual"] = row("uniadapter", TWELVE, "method.query_residual=False")
    claims = [
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
        few_parameters("uniadapter", "UniAdapter, abstract"),
    ]
    if clips:
        plain = row("uniadapter", TWELVE, "task.frame_weights=False")
        grid.rows["uniadapter-plain-frames"] = plain
        claims.append(
            claim(
                "frame-aware",
                "Weighing the frames by the text helps",
                "uniadapter",
                "uniadapter-plain-frames",
                source="UniAdapter, section 3.4",
                settings=clips,
            )
        )
    grid.claims = tuple(claims)
