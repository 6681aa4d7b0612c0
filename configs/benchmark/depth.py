"""Cross-Modal Adapter from layer 0, 4 or 8 of 12: what leaving out lower layers costs and saves.

    scripts/emoji_benchmark.sh depth PICTURES CLIPS OUT

makes the records of configs/benchmark/emoji.py and a CLIP of width 64 with 12 + 12 layers, and runs
this grid: on clips, and on negatives, whose test is large enough to tell. `data.cache=auto` keeps
what enters layer 4 or 8 of the clips; negatives are augmented, so nothing of them is kept.
"""

from uniadapter_jax.benchmark.grid import base_grid, claim, parts, row
from uniadapter_jax.benchmark.small_models import NEW, OWN, add_emoji

MARGIN = 2.0  # points


def get_config(argument=None):
    """The grid; `data` is negatives or clips, both without."""
    grid = base_grid("depth")
    for name in parts(argument, data=("negatives", "clips"))["data"]:
        add_emoji(grid, name, "deep")
    grid.trials, grid.baseline = NEW, "from-0"
    grid.rows.zero_shot = row("zero_shot")
    grid.rows.full = row("full", trials=OWN)
    claims = []
    for layer in (0, 4, 8):
        fields = ("method.init_std=0.03", f"method.from_layer={layer}")
        grid.rows[f"from-{layer}"] = row("cross_modal_adapter", *fields)
        if layer:
            statement = f"Adapters from layer {layer} on lose at most {MARGIN:g} points to all"
            kind = {"kind": "not_worse", "margin": MARGIN}
            claims.append(claim(f"from-{layer}", statement, f"from-{layer}", "from-0", **kind))
    grid.claims = tuple(claims)
    return grid
