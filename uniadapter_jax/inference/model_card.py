"""The README.md of an exported adapter: what it is, what it was measured to do, how to load it."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from uniadapter_jax import __version__
from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.tasks.retrieval import caveats
from uniadapter_jax.weights.adapter_directory import AdapterFiles
from uniadapter_jax.weights.families import Family
from uniadapter_jax.weights.hub.names import hub_name
from uniadapter_jax.weights.names.peft import FURTHER_LAYOUTS

UNKNOWN_LICENSE = "unknown"  # the hub's own word

SELECTIONS = {  # by a result's `selection`, what was chosen
    "last": "the last step, chosen without looking at results",
    "val": "the best step on clips held out of the training set",
    "test": "the best step on this very test set, which flatters it",
}
_TITLES = {"t2v": "text to clip", "v2t": "clip to text"}


def model_card(
    adapter: AdapterFiles,
    config: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    *,
    step: int,
    family: Family,
    parameters: Mapping[str, Any],
    license: str,
    base_model: str | None,
    merged: Sequence[str],
) -> str:
    """The text.

    Args:
      family: the backbone's.
      config, result: the run's; `result` is None unless it is of `step`.
      merged: of a merged backbone, the classes that its config.json names; else empty.
    """
    kind = "backbone with a merged adapter" if merged else "adapter"
    tag = get_task(config["task"]["name"]).tag
    if base_model is None and (on_hub := hub_name(adapter.backbone)):
        base_model = on_hub.repository
    lines = [
        "---",
        f"library_name: {'transformers' if merged else 'uniadapter_jax'}",
        f"license: {license}",
        *([f"base_model: {base_model}"] if base_model else []),
        "tags:",
        *(f"- {tag}" for tag in ("adapter", adapter.method, family.title.lower(), tag)),
        "---",
        "",
        f"# {config['name']}: {kind}, {adapter.method} on {family.title}",
        "",
        *_what(adapter, config, step, parameters),
        "",
        "## Measured",
        "",
        *(measured(result) if result else ["Nothing: the run has no result for this step."]),
        "",
        "## How to load it",
        "",
        *(_merged_usage(family, merged) if merged else _usage(adapter, family)),
        "",
        "## Licence",
        "",
        f"`{license}`" + (" (nobody said)." if license == UNKNOWN_LICENSE else "."),
        "The backbone and the training data have licences of their own.",
        "",
    ]
    return "\n".join(lines)


def _what(
    adapter: AdapterFiles, config: Mapping[str, Any], step: int, parameters: Mapping[str, Any]
) -> list[str]:
    options = ", ".join(f"{key} {json.dumps(value)}" for key, value in adapter.options.items())
    train, optimizer, data = config["train"], config["optimizer"], config["data"]
    rows = {
        "method": f"`{adapter.method}`" + (f" ({options})" if options else ""),
        "trained parameters": f"{parameters['trained']:,} of {parameters['total']:,} "
        f"({parameters['percent']:.3f} %)",
        "base": f"`{adapter.backbone}`, fingerprint `{adapter.fingerprint}`",
        "data": f"`{_name(data['records'])}`, {data['frames']} frames a clip, {data['words']} "
        "tokens a text",
        **{
            name.replace("_", " "): f"`{adapter.task[name]}`"
            for name in get_task(config["task"]["name"]).kept
        },
        "recipe": f"{step} steps of {train['batch_size']} samples, `{optimizer['recipe']}`, "
        f"learning rate {optimizer['lr']:g}, seed {config['seed']}",
        "made with": f"uniadapter_jax {__version__}",
    }
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


def _name(path: str) -> str:
    """The last part: where things lie on the author's machine is nobody's business."""
    return pathlib.PurePath(path).name


def measured(result: Mapping[str, Any]) -> list[str]:
    """The lines of what a result says, and on which split."""
    chosen, split = SELECTIONS[result["selection"]], "test"
    if result.get("split") == "val":
        split = "validation"
        if result["selection"] == "val":
            chosen = "the best step on these very clips, which flatters it"
    if "questions" in result:
        return [
            f"On {result['questions']} questions about {result['clips']} clips or pictures of the "
            f"{split} split, in percent; parameters of {chosen}:",
            "",
            "| accuracy | |",
            "|---|---|",
            *(
                f"| {name} | {value:.2f} |"
                for values in result["metrics"].values()
                for name, value in values.items()
            ),
        ]
    metrics = result["metrics"]
    names = list(next(iter(metrics.values())))
    return [
        f"On {result['clips']} {split} clips and {result['texts']} texts (R@K in percent, MdR and "
        f"MnR median and mean rank); parameters of {chosen}:",
        "",
        f"| direction | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
        *(
            f"| {_TITLES.get(way, way)} | {' | '.join(f'{values[name]:.1f}' for name in names)} |"
            for way, values in metrics.items()
        ),
        *(f"\n{line}." for line in caveats.of_result(result)),
    ]


def _usage(adapter: AdapterFiles, family: Family) -> list[str]:
    backbone, subject = adapter.backbone, "That backbone has"
    if hub_name(backbone) is None:
        backbone, subject = "BACKBONE", "BACKBONE is a directory with"
    lines = [
        "```python",
        "import uniadapter_jax",
        "",
        f'model = uniadapter_jax.load_model("{backbone}", "THIS_DIRECTORY")',
        *(family.usage_of_clips if get_method(adapter.method).joins_frames else family.usage),
        "```",
        "",
        f"{subject} exactly the fingerprint above; another one is refused. THIS_DIRECTORY may also "
        "be the name of this repository on the hub.",
    ]
    if further := FURTHER_LAYOUTS.get((adapter.method, family.title)):
        lines += ["", f"`{further.folder}/` holds the same in another layout:", ""]
        lines += ["```python", *further.usage, "```"]
    return lines


def _merged_usage(family: Family, classes: Sequence[str]) -> list[str]:
    return [
        f"The adapter is worked into the weights: this is a plain {family.title}.",
        "",
        "```python",
        f"from transformers import {', '.join(classes)}",
        "import uniadapter_jax",
        "",
        *(f'model = {name}.from_pretrained("THIS_DIRECTORY")  # either' for name in classes),
        'model = uniadapter_jax.load_model("THIS_DIRECTORY")  # or',
        "```",
    ]
