"""The reports of a run: on screen at its start and its end, and in result.json."""

from __future__ import annotations

import json
from typing import Any

import jax

from uniadapter_jax.data.tokenizers.truncation import Limits, count_cut, cut_lines
from uniadapter_jax.parallel.progress import duration, say
from uniadapter_jax.runs.assembly import Experiment
from uniadapter_jax.runs.loop import Fit
from uniadapter_jax.runs.provenance import revision, versions
from uniadapter_jax.tasks.retrieval import caveats
from uniadapter_jax.weights.families import family_of

SCHEMA = 1  # version of result.json, see docs/results.md
FEW = 30  # clips or questions of a validation split; below that each is over 3 points


def announce(experiment: Experiment) -> None:
    """Reports the parameters that train, the data, the devices, and the texts that are cut."""
    counts = experiment.partition.counts()
    data = experiment.data
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    say(experiment.partition.table())
    say(
        f"{experiment.method.name}: {counts['trained']:,} of {counts['total']:,} parameters train "
        f"({counts['percent']:.3f} %)"
    )
    clips = ", ".join(f"{name} {len(records)}" for name, records in data.named().items())
    mesh = dict(experiment.mesh.shape)
    say(f"clips: {clips}; {experiment.total_steps} steps; mesh {mesh}, {devices}")
    if experiment.config.selection == "val" and (val := data.named().get("val")) is not None:
        for line in few_to_choose_by(sum(val.question_counts) or len(val)):
            say(line)
    if data.unused:
        say(f"splits of the records that this run does not read: {', '.join(data.unused)}")
    family, resize = family_of(experiment.model_config), experiment.config.data.resize
    if resize != family.resize:
        say(f"config.data.resize={resize!r}: a {family.title} was trained with {family.resize!r}")
    if jax.process_index() == 0:
        announce_cut(experiment)


def few_to_choose_by(items: int) -> list[str]:
    """A line where the validation split is too small to choose a step by."""
    if items >= FEW:
        return []
    return [
        f"validation: each of its {items} clips or questions is {100 / items:.1f} points, so "
        "chance chooses the step as much as merit; more of them help, or config.selection='last'"
    ]


def announce_cut(experiment: Experiment) -> None:
    """Reports the texts of this run that are cut. The test's answers are never encoded."""
    limits, samples = Limits.from_config(experiment.config.data), experiment.kind.samples
    assert limits is not None  # a run's config has all fields
    for name, records in experiment.data.named().items():
        texts = [*samples.texts, *(samples.train_texts if name == "train" else ())]
        counts = count_cut(records, experiment.tokenizer, limits, texts)
        for line in cut_lines(name, counts, limits):
            say(line)


def describe(experiment: Experiment, trained: Fit, metrics: dict[str, Any]) -> dict[str, Any]:
    """The content of result.json without the seconds; `metrics` is the evaluator's result."""
    config = experiment.config
    measured = experiment.measured
    return {
        "schema": SCHEMA,
        "name": config.name,
        "method": experiment.method.name,
        "seed": config.seed,
        "selection": config.selection,
        "validation": validation_of(config),
        "step": trained.step,
        "last_step": trained.last_step,
        "total_steps": experiment.total_steps,
        "parameters": experiment.partition.counts(),
        **metrics,
        "final_loss": trained.final_loss,
        "data_wait_share": trained.data_wait_share,
        "train_seconds": trained.seconds,
        "split": config.eval.split,
        "data": {"fingerprint": measured.fingerprint, "coverage": measured.coverage},
        "fingerprint": experiment.fingerprint,
        "backbone": config.backbone,
        "identity": experiment.identity,
        "evaluation": experiment.evaluation,
        "task": experiment.kind.name,
        "protocol": {key: config.task[key] for key in experiment.kind.protocol},
        "config": json.loads(config.to_json_best_effort()),
        "versions": versions(),
        "revision": revision(),
        "devices": {"count": jax.device_count(), "kind": jax.devices()[0].device_kind},
        "processes": jax.process_count(),
    }


def validation_of(config: Any) -> str | None:
    """The name of the validation split, in words; None without one."""
    if config.data.val_split:
        return config.data.val_split
    return f"{config.data.val} of {config.data.train_split}" if config.data.val else None


def summary(result: dict[str, Any]) -> list[str]:
    """A few lines for people."""
    sizes = ", ".join(f"{result[n]} {n}" for n in ("clips", "texts", "questions") if n in result)
    sizes += " of the validation split" if result.get("split") == "val" else ""
    lines = [f"{result['method']} on {sizes}:"]
    for way, values in result["metrics"].items():
        shown = "  ".join(f"{name} {value:.1f}" for name, value in values.items())
        lines.append(f"  {way}  {shown}")
    for name, ways in result.get("also", {}).items():
        for way, values in ways.items():
            shown = "  ".join(f"{metric} {value:.1f}" for metric, value in values.items())
            lines.append(f"  {way} with {name}, which needs all queries: {shown}")
    lines += [f"  {line}" for line in caveats.of_result(result)]
    if result["data_wait_share"] is not None:
        lines.append(f"  data wait {result['data_wait_share']:.1%} of the training time")
    lines.append(f"  {duration(result['seconds'])} in all")
    return lines
