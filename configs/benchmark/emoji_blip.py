"""All methods for BLIP on emoji: another vendor's pictures and animated clips, re-ranked.

    scripts/emoji_benchmark.sh blip PICTURES CLIPS OUT

makes the records and the backbone that this grid names, and runs it. Rows and candidates are those
of configs/benchmark/emoji.py where they fit; beside them UniAdapter without what its paper adds:
with a down-projection for each modality (at equal parameters), without the query residual, and, for
clips, without weights of frames.
"""

from uniadapter_jax.benchmark.grid import base_grid, parts, setting
from uniadapter_jax.benchmark.small_models import FOR_TWO_TOWERS, add_methods, add_uniadapter

COMMON = (
    *("task.momentum=0.0", "task.queue=0", "task.rerank_k=16", "data.captions=random"),
    *("compute.remat=none", "compute.dropout=0.0", "data.words=16", "data.max_words=0"),
    *("data.prefetch_mb=64", "train.epochs=0", "train.checkpoint_every=40", "train.log_every=40"),
    *("train.validate_every=40", "optimizer.recipe=adamw_warmup_cosine", "optimizer.warmup=0.1"),
)
PICTURES = (
    *(*COMMON, "train.steps=120", "train.batch_size=48"),
    *("data.records=data/emoji/pictures/records", "data.frames=1", "data.val=0"),
    *("data.val_split=val", "data.augment=crop_flip_color", "data.resize=crop"),
)
NEGATIVES = (  # far from what the backbone knows, and the same subjects
    *(*PICTURES, "data.records=data/emoji/negatives/records", "data.augment=crop_flip"),
)
CLIPS = (  # 182 to train on, so an epoch has seven steps
    *(*COMMON, "train.steps=80", "train.batch_size=24"),
    *("data.records=data/emoji/clips/records", "data.frames=4", "data.val=40"),
)
FIELDS = {"negatives": NEGATIVES, "pictures": PICTURES, "clips": CLIPS}


def get_config(argument=None):
    """The grid; `data` is negatives, pictures or clips, all without.

    `rows=claims` keeps the rows that claims compare, and zero-shot: 60 clips cannot tell more.
    """
    chosen = parts(argument, data=tuple(FIELDS), rows=("methods", "claims"))
    grid = base_grid("emoji-blip")
    for name in chosen["data"]:
        grid.settings[f"{name}-blip"] = setting(
            "configs/msrvtt_uniadapter.py",
            *FIELDS[name],
            argument="backbone=data/emoji/blip-mini",
            title=f"Emoji {name}, mini BLIP, re-ranked",
        )
    add_methods(grid, without=FOR_TWO_TOWERS)
    add_uniadapter(grid, clips=("clips-blip",) if "clips" in chosen["data"] else ())
    if "methods" not in chosen["rows"]:
        compared = {"zero_shot", *(name for of in grid.claims for name in (of.row, of.than))}
        for name in set(grid.rows) - compared:
            del grid.rows[name]
    return grid
