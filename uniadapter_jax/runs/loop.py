"""The training loop, from the workdir's newest checkpoint to the last step."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uniadapter_jax.adapters.partition import flat_names
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.common.types import PyTree
from uniadapter_jax.data.loading.batches import Batch, WorkerDied
from uniadapter_jax.parallel import mesh as meshes
from uniadapter_jax.parallel.preemption import Preempted, leaving_on_signal, noting_signal, reached
from uniadapter_jax.parallel.progress import say
from uniadapter_jax.runs.assembly import Experiment
from uniadapter_jax.runs.boards import Board, numbers_of
from uniadapter_jax.runs.checkpoint import Checkpoints, abstract_like
from uniadapter_jax.runs.step_times import Meter, StepTimes, Took
from uniadapter_jax.runs.stored_checkpoint import Damaged
from uniadapter_jax.runs.writer import Writer
from uniadapter_jax.tasks.base import Evaluator, place_state
from uniadapter_jax.tasks.retrieval.evaluator import selection_value
from uniadapter_jax.training.optimizers import lr_schedule
from uniadapter_jax.training.step import Step, init_opt_state, make_step

WARM_STEPS = 10  # the data-wait share counts from here: before it, compilation dominates


class Diverged(UserError):
    """A loss, a gradient or a parameter is not finite: the run's settings, not its surroundings."""


@dataclasses.dataclass
class Fit:
    """The outcome of training; its numbers include those from before a resume."""

    trainable: PyTree
    step: int  # the step of `trainable`
    last_step: int  # the last that was trained
    final_loss: float | None
    data_wait_share: float | None
    seconds: float  # time of all steps
    steps_run: int  # steps since the resume


def fit(
    experiment: Experiment,
    workdir: pathlib.Path,
    evaluate: Evaluator,
    boards: Sequence[Board] = (),
) -> Fit:
    """Trains from the newest checkpoint in `workdir` to the last step; returns what to test.

    boards: begun, they show the numbers of the steps.

    Raises:
      Preempted: after SIGTERM or SIGINT, once the state is saved.
      Diverged: non-finite values; the tensor is named.
      UserError: a full disk, another run's workdir.
    """
    if experiment.data.train is None:
        Writer(workdir, 0, boards).close()  # every run leaves the same files
        return Fit(experiment.partition.trainable, 0, 0, None, None, 0.0, 0)
    return _Loop(experiment, workdir, evaluate, boards).run()


class _Loop:
    def __init__(
        self,
        experiment: Experiment,
        workdir: pathlib.Path,
        evaluate: Evaluator,
        boards: Sequence[Board] = (),
    ):
        self.e = experiment
        self.evaluate = evaluate
        self.total = experiment.total_steps
        self.names = list(flat_names(experiment.partition.trainable))
        self.checkpoints = Checkpoints(
            workdir / "checkpoints",
            keep=experiment.config.train.keep,
            identity=experiment.identity,
        )
        self.trainable = experiment.partition.trainable
        assert experiment.optimizer is not None
        self.opt_state = init_opt_state(experiment.optimizer, self.trainable, experiment.mesh)
        self.task_state = place_state(experiment.task, self.trainable, experiment.mesh)
        self.start = self._resume()
        self.writer = Writer(workdir, self.start, boards)
        self.saved = self.taken = self.start
        self._under_way: tuple[int, dict[str, jax.Array]] | None = None  # a step, and its numbers
        self.meter = Meter(
            pairs=experiment.config.train.batch_size * experiment.config.data.captions_per_clip,
            start=self.start,
            total=self.total,
            epoch_steps=experiment.epoch_steps,
            shown=experiment.kind.shown,
        )
        self.terminate = False

    def _resume(self) -> int:
        newest = self.checkpoints.restore_newest(abstract_like(self._state()))
        if newest is None:
            return 0
        step, state = newest
        self._take(state)
        say(f"resumed from step {step} of {self.total}")
        return step

    def _take(self, state: Mapping[str, PyTree]) -> None:
        """Sets the state from a checkpoint."""
        self.trainable, self.opt_state = state["trainable"], state["opt_state"]
        self.task_state = state.get("task_state", {})

    def _state(self) -> dict[str, PyTree]:
        """The state that a checkpoint holds."""
        state = {"trainable": self.trainable, "opt_state": self.opt_state}
        return {**state, "task_state": self.task_state} if self.task_state else state

    def run(self) -> Fit:
        with noting_signal(self._on_signal, self._nothing_unsaved):
            try:
                return self._run()
            except BaseException:
                self._abandon()
                raise

    def _run(self) -> Fit:
        self._select_late()
        if self.start < self.total and not self._lost_patience(self.start):
            self._steps()
        self.checkpoints.wait()
        if self.terminate:  # the signal came after the check in the last step
            raise Preempted("stopped after the last step; saved")
        chosen = self._choose()
        self.writer.close()
        self.checkpoints.close()
        return self._fit(chosen)

    def _choose(self) -> int:
        """Restores the step to be tested, and returns its number."""
        if self.e.config.selection == "last":
            return self.total
        abstract = abstract_like(self._state())
        while (chosen := self.checkpoints.best() or self.total) != self.total:
            try:
                self._take(self.checkpoints.restore(chosen, abstract))
                break
            except Damaged as error:
                self.checkpoints.forget(chosen)
                say(f"warning: the best checkpoint, of step {chosen}, is damaged: {error}")
        say(f"best on {self.e.config.selection}: step {chosen}")
        return chosen

    def _fit(self, chosen: int) -> Fit:
        steps = self.writer.read("train")
        warm = [step for step in steps if step["since_start"] > WARM_STEPS]
        wall = sum(step["seconds"] for step in warm)
        return Fit(
            trainable=self.trainable,
            step=chosen,
            last_step=self.total,
            final_loss=steps[-1]["loss"] if steps and steps[-1]["step"] == self.total else None,
            data_wait_share=sum(s["wait_seconds"] for s in warm) / wall if warm else None,
            seconds=sum(step["seconds"] for step in steps),
            steps_run=self.total - self.start,
        )

    def _abandon(self) -> None:
        """Closes the files; errors here are dropped, as the one being raised says more."""
        if jax.process_count() > 1:  # closing waits for the others
            return
        for files in (self.writer, self.checkpoints):
            with contextlib.suppress(Exception):
                files.close()

    def _on_signal(self) -> None:
        self.terminate = True
        if self._nothing_unsaved():  # e.g. before the first step, which takes minutes to compile
            raise Preempted("stopped; no training step is lost")

    def _nothing_unsaved(self) -> bool:
        return self.saved == self.taken and not self.checkpoints.saving

    def _must_stop(self) -> bool:
        return reached() if jax.process_count() > 1 else self.terminate

    def _steps(self) -> None:
        """All steps, in the order that keeps the devices busy.

        Step n is dispatched; the numbers of step n - 1 come back while n runs; batch n + 1 is put
        on the devices. Only then are the numbers of n waited for, behind the dispatch of n + 1, or
        before the state after n is saved: nothing is saved before it is known to be finite.
        """
        e = self.e
        assert e.data.train is not None and e.optimizer is not None
        batches: Any = e.train_batches(self.start)
        step_fn = self._step_function()
        self.times = StepTimes()
        say("compiling the training step; the first one shows how long that takes")
        with contextlib.closing(batches), contextlib.closing(self.times):
            batch = self._put_next(batches)
            for step in range(self.start + 1, self.total + 1):
                self.trainable, self.opt_state, self.task_state, metrics = step_fn(
                    self.trainable,
                    self.opt_state,
                    self.task_state,
                    e.partition.frozen,
                    batch,
                    np.int32(step - 1),
                )
                self.taken = step
                self.times.begin(metrics)
                self._settle()
                self._under_way = step, metrics
                stop = self._must_stop()
                if not stop and step < self.total:
                    batch = self._put_next(batches)
                self._after_step(step, stop)
                if self._lost_patience(step):
                    break

    def _step_function(self) -> Step:
        e = self.e
        assert e.optimizer is not None
        return make_step(
            e.task,
            e.partition,
            e.optimizer,
            e.mesh,
            e.config.seed,
            e.config.train.accumulation,
            lr_schedule(e.config.optimizer, self.total, e.epoch_steps),
        )

    def _put_next(self, batches: Any) -> dict[str, jax.Array]:
        """The next batch, on its way to the devices."""
        with self.times.asking():
            batch = self._next(batches)
        return meshes.put_batch(batch, self.e.mesh, self.e.config.train.batch_size)

    def _settle(self) -> None:
        """Fetches, checks and logs the numbers of the step under way, if there is one."""
        if self._under_way is None:
            return
        (step, metrics), self._under_way = self._under_way, None
        values = meshes.fetch(metrics)
        took = self.times.end()
        self._check_finite(step, values)
        self._log(step, values, took)

    def _next(self, batches: Any) -> Batch:
        try:
            return next(batches)
        except WorkerDied as error:
            kept = self._kept()
            # Several processes can only save together, and the others do not know of the error.
            if jax.process_count() == 1 and self.taken > self.saved:
                self._settle()
                self._save(self.taken)
                self.checkpoints.wait()
                kept = f"step {self.taken} is saved"
            raise WorkerDied(f"{error}; {kept}. Run the same command to go on") from error

    def _kept(self) -> str:
        return f"the last checkpoint is of step {self.saved}" if self.saved else "none is saved"

    def _check_finite(self, step: int, values: dict[str, np.ndarray]) -> None:
        flags = values.pop("nonfinite")
        bad = [name for name, flag in zip(self.names, flags, strict=True) if flag]
        if not np.isfinite(values["loss"]):
            bad.insert(0, "loss")
        if bad:
            more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
            self.checkpoints.wait()
            self.writer.flush()
            raise Diverged(
                f"step {step}: non-finite values in {', '.join(bad[:5])}{more}; {self._kept()}. "
                "Lower config.optimizer.lr, or look at this batch's clips"
            )

    def _log(self, step: int, values: Mapping[str, Any], took: Took) -> None:
        scalars = {name: float(value) for name, value in values.items()}
        scalars["seconds"] = round(took.seconds, 6)
        scalars["wait_seconds"] = round(took.waited, 6)
        scalars["since_start"] = step - self.start  # the first steps of a process compile
        self.writer.write("train", step, scalars)
        self.meter.add(step, took)
        first = step == self.start + 1
        if step % self.e.config.train.log_every == 0 or step == self.total or first:
            self.writer.flush()
            say(self.meter.line(step, scalars))

    def _after_step(self, step: int, stop: bool) -> None:
        train = self.e.config.train
        every = train.checkpoint_every or self.e.epoch_steps
        selects = self._selects(step)
        if stop or selects or step % every == 0 or step == self.total:
            self._settle()
            with self.times.pause():
                self._save(step)  # before the evaluation: if that fails, no step is lost
                if selects and not stop:
                    stop = not self._selected(step)
        if stop:
            self.checkpoints.wait()
            raise Preempted(f"stopped at step {step} of {self.total}; saved")

    def _selected(self, step: int) -> bool:
        """Measures the step just saved; returns False if a signal came, which postpones it."""
        try:
            with leaving_on_signal():
                selection = self._select(step)
        except Preempted:
            return False
        self.checkpoints.wait()
        self.checkpoints.set_selection(step, selection)
        return True

    def _lost_patience(self, step: int) -> bool:
        """Whether training ends here, by `train.patience`; follows from the checkpoints alone."""
        patience, best = self.e.config.train.patience, self.checkpoints.best()
        if not patience or best is None or not self._selects(step):
            return False
        since = -(-(step - best) // self.between)  # validations, the last step's included
        if since < patience:
            return False
        say(f"stopped at step {step} of {self.total}: none of {since} validations was as good")
        self.total = step
        return True

    def _selects(self, step: int) -> bool:
        due = step % self.between == 0 or step == self.total
        return due and self.e.config.selection != "last"

    @property
    def between(self) -> int:
        """Steps between two validations."""
        return self.e.config.train.validate_every or self.e.epoch_steps

    def _select_late(self) -> None:
        """Measures checkpoints that a signal left unmeasured, or whose value is damaged."""
        if self.start and self._selects(self.start):
            if not self.checkpoints.has_selection(self.start):
                with leaving_on_signal():
                    selection = self._select(self.start)
                self.checkpoints.set_selection(self.start, selection)
        self._select_again()

    def _select_again(self) -> None:
        """Measures earlier checkpoints whose selection value is damaged."""
        for step in self.checkpoints.steps:
            known = self.checkpoints.has_selection(step)
            if step >= self.start or known or not self._selects(step):
                continue
            try:
                state = self.checkpoints.restore(step, abstract_like(self._state()))
            except Damaged as error:
                say(f"warning: the checkpoint of step {step} is damaged: {error}")
                continue
            with leaving_on_signal():
                selection = self._measure(step, state["trainable"])
            self.checkpoints.set_selection(step, selection)

    def _select(self, step: int) -> float:
        return self._measure(step, self.trainable)

    def _measure(self, step: int, trainable: PyTree) -> float:
        which = self.e.config.selection
        records = self.e.data.val if which == "val" else self.e.data.test
        assert records is not None
        measured = self.evaluate(trainable, records)
        value = selection_value(measured, self.e.config.selection_metric)
        if not any(line["step"] == step for line in self.writer.read(which)):
            numbers = {"selection": value, **numbers_of(measured["metrics"])}
            self.writer.write(which, step, numbers)
            self.writer.flush()  # before the checkpoint says that it was measured
        say(f"{which} after step {step}: {self.e.config.selection_metric} {value:.2f}")
        return value

    def _save(self, step: int) -> None:
        # A copy: on a CPU the writer's thread would read memory that the next step, which is given
        # the state's buffers, writes into.
        state = _copy(self._state())
        self.writer.flush()
        self.checkpoints.save(step, state)
        self.saved = step


@jax.jit
def _copy(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)
