"""Shows a run on Weights & Biases: numbers, config and result. The package is optional."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from uniadapter_jax.common.errors import MachineError, UserError
from uniadapter_jax.runs.boards import Begun


class WandB:
    """A run of a project there, as `runs.boards.Board` says.

    A command that resumes its workdir goes on with the same run, whose id follows from the
    workdir's identity. Steps that were shown are not shown again.
    """

    _run: Any = None

    def __init__(self, project: str):
        if importlib.util.find_spec("wandb") is None:
            raise UserError(
                f"--wandb={project}: wandb is not installed; pip install 'uniadapter_jax[wandb]', "
                "or leave the flag out"
            )
        self._project = project
        self._shown: dict[str, int] = {}  # {kind: last step}
        self._finished = False

    def begin(self, run: Begun) -> None:
        """Begins the run there, or goes on with it."""
        import wandb

        try:
            self._run = wandb.init(
                project=self._project,
                id=run.id,
                name=run.name,
                resume="allow",
                dir=str(run.workdir),
                config=dict(run.config),
                allow_val_change=True,  # what only the evaluation reads may change
                settings=wandb.Settings(console="off"),  # the screen is not part of the result
            )
        except wandb.Error as error:
            raise MachineError(
                f"--wandb={self._project}: {error}. Run `wandb login`, or set WANDB_MODE=offline "
                "and send it later with `wandb sync`"
            ) from error

    def resume(self, step: int) -> None:
        """Does nothing: the numbers that come again are the ones that are shown."""

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """Shows numbers under kind/name, over kind/step: wandb's own steps can only grow."""
        if kind not in self._shown:
            self._run.define_metric(f"{kind}/*", step_metric=f"{kind}/step")
            self._shown[kind] = int(self._run.summary.get(f"{kind}/step", -1))
        if step > self._shown[kind]:
            self._shown[kind] = step
            named = {f"{kind}/{name}": value for name, value in numbers.items()}
            self._run.log({f"{kind}/step": step, **named})

    def flush(self) -> None:
        """Does nothing: wandb sends by itself."""

    def finish(self, step: int, final: Mapping[str, float]) -> None:
        """Puts the result into the run's summary."""
        self._run.summary.update(
            {"final/step": step, **{f"final/{k}": v for k, v in final.items()}}
        )
        self._finished = True

    def close(self) -> None:
        """Ends the run there; without a result it counts as failed until it goes on."""
        if self._run is not None:
            self._run.finish(exit_code=0 if self._finished else 1)
            self._run = None
