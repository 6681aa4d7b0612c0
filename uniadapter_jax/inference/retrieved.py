"""What a run retrieves, as a picture: chosen texts, or the best and the worst of its test."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.records import Records
from uniadapter_jax.inference import gallery
from uniadapter_jax.runs.assembly import build
from uniadapter_jax.runs.files import read_run
from uniadapter_jax.runs.loop import fit
from uniadapter_jax.runs.workdir import holding
from uniadapter_jax.tasks.retrieval.evaluator import Embedded, RetrievalEvaluator

CLIPS = 4  # shown for a text


def draw(
    config: ConfigDict, workdir: pathlib.Path, queries: Mapping[int, str] | None, title: str
) -> Image.Image:
    """Draws the best clips of some test texts by the model that a finished run left in `workdir`.

    Args:
      queries: {number of the text: a note about it}; None for six that are spread evenly.
    """
    experiment = build(config)
    evaluator = experiment.kind.evaluator(experiment, None)
    if not isinstance(evaluator, RetrievalEvaluator):
        raise UserError(f"{workdir}: task {config.task.name} ranks no clips, so none are shown")
    trainable = fit(experiment, workdir, evaluator).trainable  # only restores: all steps are done
    test = experiment.data.test
    texts = [(clip, text) for clip, of_it in enumerate(test.captions) for text in of_it]
    if queries is None:
        queries = dict.fromkeys(range(0, len(texts), max(1, len(texts) // 6)), "")
        queries = dict.fromkeys(list(queries)[:6], "")
    chosen = [texts[query] for query in queries]
    scores = _scores(evaluator, trainable, test, [text for _, text in chosen])
    rows = [
        _row(test, clip, f"{text}{note}", of_text)
        for (clip, text), note, of_text in zip(chosen, queries.values(), scores, strict=True)
    ]
    return gallery.draw_rows(title, rows)


def draw_best_and_worst(
    workdir: pathlib.Path, count: int, beside: pathlib.Path | None = None
) -> Image.Image:
    """Draws the texts that a run ranks best, and those that it ranks worst.

    beside: another run on the same test; its ranks stand beside, and the texts are those whose rank
      differs most.

    Raises:
      UserError: no run, one without a result or without ranks, or runs of other tests.
    """
    run = read_run(workdir)
    ranks, ids = _ranks(workdir, run.result)
    notes, gain = {}, -ranks
    if beside is not None:
        other, others = _ranks(beside, read_run(beside).result)
        if others != ids:
            raise UserError(f"{beside} and {workdir} were tested on other texts")
        gain = other - ranks
        notes = {i: f"   ({beside.name}: {rank:g})" for i, rank in enumerate(other)}
    order = np.argsort(-gain, kind="stable")
    count = min(count, len(order) // 2 or 1)
    chosen = dict.fromkeys([*order[:count].tolist(), *order[-count:].tolist()])
    what = "best and worst" if beside is None else f"gained and lost most beside {beside.name}"
    with holding(workdir, "looking"):
        return draw(
            ConfigDict(_plain(run.config)),
            workdir,
            {query: notes.get(query, "") for query in chosen},
            f"{workdir.name}: {len(chosen)} of {len(ids)} texts, {what}",
        )


def _ranks(workdir: pathlib.Path, result: Mapping[str, Any] | None) -> tuple[np.ndarray, list[str]]:
    if result is None or "ranks" not in result:
        raise UserError(f"{workdir}: no result with ranks yet, so there is no best and no worst")
    return np.asarray(result["ranks"]["t2v"], float), result["query_ids"]["t2v"]


def _plain(value: Any) -> Any:
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _scores(
    evaluator: RetrievalEvaluator, trainable: Any, test: Records, texts: Sequence[str]
) -> np.ndarray:
    encoder = evaluator.encoder
    ids = encoder.text_ids(list(texts))
    embedded = Embedded(ids, encoder.ids(trainable, ids), *encoder.clips(trainable, test))
    return np.asarray(jax.device_get(evaluator.scores(trainable, test, embedded)["t2v"]))


def _row(test: Records, clip: int, text: str, scores: np.ndarray) -> gallery.Row:
    best = np.argsort(-scores, kind="stable")[:CLIPS]
    hits = [gallery.Hit(test.read(int(i)).frames, bool(i == clip)) for i in best]
    return gallery.Row(text, 1 + int((scores > scores[clip]).sum()), hits)
