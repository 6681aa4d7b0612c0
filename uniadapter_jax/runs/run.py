"""One run from config to result.json."""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from uniadapter_jax.common.disk import disk_errors
from uniadapter_jax.common.errors import UserError
from uniadapter_jax.parallel import launch
from uniadapter_jax.parallel.preemption import leaving_on_signal
from uniadapter_jax.parallel.progress import say
from uniadapter_jax.runs.assembly import Experiment, build
from uniadapter_jax.runs.backbone import as_begun
from uniadapter_jax.runs.boards import Board, begun, opened, result_numbers
from uniadapter_jax.runs.checkpoint import last_step
from uniadapter_jax.runs.claims import check_target, check_workdir, claim, keep_identity
from uniadapter_jax.runs.loop import fit
from uniadapter_jax.runs.provenance import (
    check_agreement,
    code_digest,
    flat_fields,
    revision,
    versions,
)
from uniadapter_jax.runs.report import announce, describe, summary
from uniadapter_jax.runs.results import count_evaluations, keep_result, set_aside
from uniadapter_jax.runs.tensorboard import TensorBoard
from uniadapter_jax.weights.directory import save_backbone


def run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    save_backbone_to: str | None = None,
    boards: Sequence[Board] = (),
) -> dict[str, Any]:
    """Builds, trains (or resumes) and tests a run; writes and returns `workdir/result.json`.

    The schema of the result is in docs/results.md. `boards` show the run, beside TensorBoard.

    Raises:
      UserError: settings do not fit, or a file cannot be written; if it happens on one process, it
        is raised on all.
      Preempted: after SIGTERM or SIGINT; the same call resumes the run.
    """
    with leaving_on_signal(), contextlib.ExitStack() as stack:
        return _run(config, pathlib.Path(workdir), save_backbone_to, boards, stack)


def _run(
    config: ConfigDict,
    workdir: pathlib.Path,
    save_backbone_to: str | None,
    boards: Sequence[Board],
    stack: contextlib.ExitStack,
) -> dict[str, Any]:
    """Does the work of `run`; `stack` keeps the lock on the workdir, and the boards open."""
    began = time.time()
    experiment = _build_together(config, workdir, save_backbone_to, stack)
    keep_identity(workdir, experiment)
    if jax.process_index() == 0:
        set_aside(workdir, experiment.identity, experiment.evaluation)
    announce(experiment)
    if experiment.prefix is not None:
        experiment.prefix.fill()
    evaluate = experiment.kind.evaluator(experiment, workdir)
    shown = begun(workdir, experiment.config, experiment.identity)
    boards = stack.enter_context(opened([TensorBoard(), *boards], shown))
    trained = fit(experiment, workdir, evaluate, boards)
    metrics = evaluate(trained.trainable, experiment.measured)
    result = {**describe(experiment, trained, metrics), "seconds": time.time() - began}
    if jax.process_index() == 0:
        result["evaluations"] = count_evaluations(
            workdir, experiment.identity, experiment.config.eval.split
        )
        keep_result(workdir, result)
        for board in boards:
            board.finish(result["step"], result_numbers(result))
        if save_backbone_to:
            partition = experiment.partition
            model = partition.merge(trained.trainable, partition.frozen)
            with disk_errors(pathlib.Path(save_backbone_to), 4 * partition.counts()["total"]):
                save_backbone(model, save_backbone_to, experiment.tokenizer_directory)
    for line in summary(result):
        say(line)
    return result


def _build_together(
    config: ConfigDict,
    workdir: pathlib.Path,
    save_backbone_to: str | None,
    stack: contextlib.ExitStack,
) -> Experiment:
    """Builds the experiment; raises on all processes if one fails or if their settings differ."""
    experiment, mine = None, {}
    try:
        if save_backbone_to:
            check_target(config, save_backbone_to)
        claim(workdir, stack)
        experiment = build(as_begun(config, workdir))
        check_workdir(workdir, experiment)
        mine = {
            **experiment.identity,
            "evaluation": experiment.evaluation,
            **flat_fields(experiment.config),
            "mesh": dict(experiment.mesh.shape),
            "workdir's last checkpoint": last_step(workdir / "checkpoints"),
            **versions(),
            "code revision": revision(),
            "code": code_digest(),
        }
    except UserError as error:
        if jax.process_count() == 1:
            raise
        mine = {"error": str(error)}
    sides = launch.exchange(mine)
    check_agreement(sides)
    assert experiment is not None
    return experiment
