"""A small grid on the demo's clips, to see what the benchmark gives: some minutes on two cores.

    python -m uniadapter_jax.demo
    python -m uniadapter_jax.benchmark --config=configs/benchmark/demo.py --output=runs/demo-grid

The first command makes the clips and records. 60 of the training clips validate. With
`:rows=all` every method takes part but UniAdapter, whose form for CLIP is our own.
"""

from uniadapter_jax.benchmark.grid import base_grid, claim, row, setting
from uniadapter_jax.benchmark.small_models import add_methods
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.config import parse_argument


def get_config(argument=None):
    """The grid; `rows` is few, or all."""
    rows = parse_argument(argument, rows="few")["rows"]
    if rows not in ("few", "all"):
        raise UserError(f"rows={rows}: choose few or all")
    grid = base_grid("demo")
    grid.settings.clips = setting(
        "configs/demo.py",
        *("data.val=60", "train.steps=120", "train.checkpoint_every=60", "data.captions=all"),
        title="Clips of coloured shapes, tiny CLIP",
    )
    if rows == "all":
        add_methods(grid)
        grid.rows.tempme = row("tempme")
        # The tiny CLIP has 24 positions, of which captions take 20.
        grid.rows.coop = row("coop", "method.tokens=4")
        grid.rows.vl_prompt = row("vl_prompt", "method.prefix=2", "method.suffix=2")
    else:
        grid.rows.zero_shot = row("zero_shot")
        grid.rows.projection = row("projection")
        grid.rows.cross_modal_adapter = row("cross_modal_adapter")
        grid.rows.lora = row("lora", "method.rank=4", size="rank")
        grid.rows.houlsby = row("houlsby", "method.bottleneck=8", size="bottleneck")
        grid.rows.full = row("full")
        grid.trials = ("optimizer.lr=0.0007", "optimizer.lr=0.003", "optimizer.lr=0.008")
    grid.claims = (
        claim(
            "adapters-reach-full",
            "Few parameters reach full fine-tuning, within 2 points",
            "cross_modal_adapter",
            "full",
            source="Cross-Modal Adapter, section 4",
            kind="not_worse",
            margin=2.0,
        ),
    )
    return grid
