"""All methods for CLIP on emoji: two sizes, another vendor's pictures and animated clips.

    scripts/emoji_benchmark.sh clip PICTURES CLIPS OUT

makes the records and the backbones that this grid names, and runs it; `:size=mini,data=pictures` is
a quarter of it, the one whose results are in docs/benchmark/emoji.md.
Rows and their candidates are in uniadapter_jax/benchmark/small_models.py.
"""

from uniadapter_jax.benchmark.grid import base_grid, claim, parts, row
from uniadapter_jax.benchmark.small_models import (
    EMOJI,
    SMALL,
    add_emoji,
    add_methods,
    few_parameters,
)


def get_config(argument=None):
    """The grid; `size` is mini or small, `data` negatives, pictures or clips, both all without."""
    chosen = parts(argument, size=("mini", "small"), data=tuple(EMOJI))
    grid = base_grid("emoji")
    for size in chosen["size"]:
        for name in chosen["data"]:
            add_emoji(grid, name, size)
    add_methods(grid)
    of_paper = grid.rows.cross_modal_adapter
    grid.rows["cma-unshared"] = row(of_paper.method, *of_paper.fields, "method.shared_dim=0")
    grid.rows["cma-from-1"] = row(of_paper.method, *of_paper.fields, "method.from_layer=1")
    grid.rows.uniadapter = row("uniadapter", SMALL)
    grid.claims = (
        claim(
            "sharing",
            "A shared slice of the up-projections is better than none",
            "cross_modal_adapter",
            "cma-unshared",
            source="Cross-Modal Adapter, ablation of d_s",
        ),
        claim(
            "depth",
            "Adapters from the second layer on lose at most 2 points to adapters in all layers",
            "cma-from-1",
            "cross_modal_adapter",
            kind="not_worse",
            margin=2.0,
        ),
        few_parameters("cross_modal_adapter", "Cross-Modal Adapter, table 1"),
    )
    return grid
