"""All methods for BLIP on easy-VQA: what answers yes or no learns to name colours and shapes.

    scripts/easy_vqa_benchmark.sh OUT

makes the records and the backbone that this grid names, and runs it. The backbone was trained from
scratch on the yes/no questions of one half of the training pictures; the methods adapt it to all
questions of the other half. 67.0 % is the most that questions alone give away.
"""

from uniadapter_jax.benchmark.grid import base_grid, claim, row, setting

# Candidates: for new parameters, and for the backbone's own.
NEW = ("optimizer.lr=0.001", "optimizer.lr=0.003", "optimizer.lr=0.01")
OWN = ("optimizer.lr=0.0001", "optimizer.lr=0.0003", "optimizer.lr=0.001")
FIELDS = (
    *("task.frame_weights=False", "task.inference=rank", "task.rank_k=13", "compute.dropout=0.0"),
    *("compute.remat=none", "data.records=data/easy-vqa/adapt/records", "data.frames=1"),
    *("data.words=13", "data.max_words=0", "data.answer_words=3", "data.val=100"),
    "data.resize=crop",
    *("train.epochs=0", "train.steps=240", "train.batch_size=64", "train.checkpoint_every=120"),
    *("train.log_every=60", "optimizer.recipe=adamw_warmup_cosine", "optimizer.warmup=0.1"),
    "eval.batch_size=100",
)
SMALL, TWELVE = "method.bottleneck=8", "method.bottleneck=12"
SEPARATE = ("method.share_down=False", "method.bottleneck=7")


def get_config(argument=None):
    """The grid."""
    del argument
    grid = base_grid("easy-vqa")
    grid.settings["easy-vqa"] = setting(
        "configs/msrvtt_qa.py",
        *FIELDS,
        argument="backbone=data/easy-vqa/blip-yes-no",
        title="easy-VQA, small BLIP that was trained to answer yes or no",
    )
    grid.trials = NEW
    rows = grid.rows
    rows.zero_shot = row("zero_shot")
    rows.full = row("full", trials=OWN)
    rows.partial = row("partial", trials=OWN)
    rows.bitfit = row("bitfit")
    rows.layer_norm = row("layer_norm")
    rows.lora = row("lora")
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
