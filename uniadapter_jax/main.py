"""Adapts a frozen backbone and evaluates it.

    python -m uniadapter_jax.main --config=configs/msrvtt.py --workdir=runs/msrvtt
    python -m uniadapter_jax.main --config=configs/msrvtt.py:method=lora --config.method.rank=4

Rerunning the same command resumes from the last checkpoint, or evaluates again when training is
complete. SIGTERM or Ctrl-C makes it save and stop, a second one ends it at once. The result is in
WORKDIR/result.json, the losses in WORKDIR/metrics.jsonl (and TensorBoard); see docs/results.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from uniadapter_jax.common.errors import UserError, run_app
from uniadapter_jax.config.choices import choices
from uniadapter_jax.parallel import launch
from uniadapter_jax.parallel.preemption import Preempted, end
from uniadapter_jax.runs.run import run
from uniadapter_jax.runs.wandb_board import WandB

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment: NAME or FILE[:ARGUMENTS]."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Checkpoints and results; default runs/<name>.")
_SAVE = flags.DEFINE_string(
    "save-backbone", None, "With method=full: write the trained backbone to this directory."
)
_WANDB = flags.DEFINE_string("wandb", None, "Shows the run in this project of wandb, too.")
flags.DEFINE_alias("save_backbone", "save-backbone")
flags.adopt_module_key_flags(launch)


def main(argv: Sequence[str]) -> int:
    """Runs the config that the flags name."""
    del argv
    config = _CONFIG.value
    if config is None:
        raise UserError("--config is missing; for example --config=configs/msrvtt.py")
    with launch.processes():
        launch.use_compile_cache()
        try:
            boards = [WandB(_WANDB.value)] if _WANDB.value else []
            run(config, _WORKDIR.value or f"runs/{config.name}", _SAVE.value, boards)
            launch.end_processes()
        except Preempted as stopped:
            return end(stopped)
    return 0


if __name__ == "__main__":
    __doc__ = f"{__doc__}\n{choices()}"
    run_app(main)
