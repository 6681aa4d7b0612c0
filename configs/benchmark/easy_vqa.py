"""All methods for BLIP on easy-VQA: what answers about colours and shapes meets them inverted.

    scripts/easy_vqa_benchmark.sh OUT

makes the records and the backbone that this grid names, and runs it. The backbone was trained from
scratch on one half of the training pictures; the methods adapt it to the other half, and to the
test, with all colours inverted, where each colour keeps its name. 67.0 % is the most that questions
alone give away.
"""

from uniadapter_jax.benchmark.grid import base_grid, setting
from uniadapter_jax.benchmark.small_models import FOR_TWO_TOWERS, add_methods, add_uniadapter

FIELDS = (
    *("task.frame_weights=False", "task.inference=rank", "task.rank_k=13", "compute.dropout=0.0"),
    *("compute.remat=none", "data.records=data/easy-vqa/adapt/records", "data.frames=1"),
    *("data.words=13", "data.max_words=0", "data.answer_words=3", "data.val=100"),
    "data.resize=crop",
    *("train.epochs=0", "train.steps=240", "train.batch_size=64", "train.checkpoint_every=120"),
    *(
        "train.validate_every=60",
        "train.log_every=60",
        "optimizer.recipe=adamw_warmup_cosine",
        "optimizer.warmup=0.1",
    ),
    "eval.batch_size=100",
)


def get_config(argument=None):
    """The grid."""
    del argument
    grid = base_grid("easy-vqa")
    grid.settings["easy-vqa"] = setting(
        "configs/msrvtt_qa.py",
        *FIELDS,
        argument="backbone=data/easy-vqa/blip",
        title="easy-VQA with colours inverted, small BLIP",
    )
    add_methods(grid, without=("projection", *FOR_TWO_TOWERS))
    add_uniadapter(grid)
    return grid
