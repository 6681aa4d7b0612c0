"""Exports a finished run to a small, strict directory that others can load.

    python -m uniadapter_jax.export --workdir RUN --to DIR [--push REPO] [--merge]

DIR gets adapter_model.safetensors (float32), adapter_config.json (method, options, fingerprint of
the backbone), README.md (a model card with the run's measurements) and, if the backbone has none,
the tokenizer's files. `uniadapter_jax.load_model(backbone, DIR)` reads it, and detects damage by
its digests. A LoRA is also exported in PEFT's layout, under DIR/peft. DIR appears when it is
complete; a directory that is not empty is refused.

With --merge, DIR is a complete backbone with the adapter merged into its weights: for lora,
projection and full. See docs/weights.md.
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# Only a few MB are read and written, so no accelerator should be taken.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

from uniadapter_jax.adapters.partition import Partition, flat_names
from uniadapter_jax.adapters.registry import Method, get_method
from uniadapter_jax.common import packaged
from uniadapter_jax.common.digests import write_digests
from uniadapter_jax.common.errors import UserError, plain_command
from uniadapter_jax.common.new_directory import new_directory
from uniadapter_jax.common.parsers import command_parser
from uniadapter_jax.common.ranges import check_range, check_type
from uniadapter_jax.config import base_config
from uniadapter_jax.config.rules import MULTIPLIERS, leaves, ranges_of
from uniadapter_jax.inference.clip_options import kept_of_run
from uniadapter_jax.inference.load import put_adapter, trainable_shapes
from uniadapter_jax.inference.model_card import SELECTIONS, UNKNOWN_LICENSE, model_card
from uniadapter_jax.runs.checkpoint import last_step, restore_trainable
from uniadapter_jax.runs.files import Run, check_same, read_run
from uniadapter_jax.runs.workdir import check_free
from uniadapter_jax.tasks.registry import get_task
from uniadapter_jax.weights.adapter_directory import AdapterFiles, write_adapter
from uniadapter_jax.weights.directory import Backbone, copy_tokenizer, fill_backbone, load_backbone
from uniadapter_jax.weights.families import family_of
from uniadapter_jax.weights.hub.fetch import located
from uniadapter_jax.weights.hub.names import hub_name, public
from uniadapter_jax.weights.hub.push import push
from uniadapter_jax.weights.names.peft import FURTHER_LAYOUTS
from uniadapter_jax.weights.needed import tokenizer_of

# Fields of `config.data` that an adapter keeps: how texts become ids, and pictures pixels.
_DATA = ("words", "answer_words", "preprocess", "max_words", "resize")


def _tested_step(run: Run) -> int:
    """The step of the run's result, else of its newest checkpoint."""
    step = run.result["step"] if run.result else last_step(run.workdir / "checkpoints")
    if step is None:
        raise UserError(f"{run.workdir} holds no checkpoint yet")
    return step


def export(
    workdir: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    backbone: str | None = None,
    tokenizer: str | None = None,
    step: int | None = None,
    merge: bool = False,
    license: str = UNKNOWN_LICENSE,
    base_model: str | None = None,
) -> None:
    """Writes a run's adapter to the new directory `to`.

    Args:
      backbone: directory of the run's backbone, if it has moved.
      tokenizer: directory of its tokenizer, if it has moved.
      step: step of the checkpoint; by default the one that was tested.
      merge: writes a complete backbone instead, with the adapter in its weights.
      license, base_model: names for the model card that the HuggingFace hub knows.

    Raises:
      UserError: there is no run, or it is still at work; its method has nothing to export or cannot
        be merged; the backbone is not the run's; the tokenizer is missing. Nothing is left behind.
    """
    check_free(workdir)
    run = read_run(workdir)
    method = _check_method(run, merge)
    _check_settings(run)
    base = _load_backbone(run, backbone)
    chosen = _tested_step(run) if step is None else step
    adapter = _adapter(run, method, base, chosen)
    partition = put_adapter(base, adapter)  # checks it as strictly as loading does
    texts = _tokenizer_directory(run, base, tokenizer)
    card = model_card(
        adapter,
        run.config,
        _result_of(run, chosen),
        step=chosen,
        family=family_of(base.model.config),
        parameters=partition.counts(),
        license=license,
        base_model=base_model,
        merged=base.model.config.to_huggingface()["architectures"] if merge else (),
    )
    with new_directory(to) as folder:
        if merge:
            _write_merged(folder, method, partition, texts)
        else:
            write_adapter(folder, adapter)
            family = family_of(base.model.config)
            if further := FURTHER_LAYOUTS.get((method.name, family.title)):
                further.write(folder / further.folder, adapter, flat_names(partition.frozen))
            if texts != base.source:
                write_digests(folder, copy_tokenizer(texts, folder, family))
        (folder / "README.md").write_text(card)


def adapter_place(run: Run) -> pathlib.Path:
    """Where in its workdir `exported` puts the adapter of a finished run."""
    if run.result is None:
        raise UserError(f"--adapter={run.workdir}: this run has no result yet; finish it")
    return run.workdir / f"adapter-{run.result['step']}"


def exported(run: Run) -> str:
    """The adapter of a finished run, exported into its workdir unless it is there already."""
    to = adapter_place(run)
    if not to.exists():
        export(run.workdir, to)
    return str(to)


def _check_method(run: Run, merge: bool) -> Method:
    method = get_method(run.config["method"]["name"])
    version = run.identity["method.version"]
    if version != method.version:
        raise UserError(
            f"{run.workdir} was trained with version {version} of {method.name}, this package has "
            f"version {method.version}"
        )
    if method.trainable is None:
        raise UserError(f"{run.workdir}: {method.name} trains nothing, so there is no adapter")
    if merge and method.merge is None:
        raise UserError(
            f"{run.workdir}: {method.name} is not linear, so it cannot be merged into the "
            "backbone's weights; leave --merge out"
        )
    if method.trains_backbone and not merge:
        raise UserError(
            f"{run.workdir}: {method.name} trained the whole backbone; pass --merge to write it"
        )
    return method


def _check_settings(run: Run) -> None:
    """Raises `UserError` for an invalid setting, as config.json may be damaged."""
    where, config = run.workdir / "config.json", run.config
    method, task = get_method(config["method"]["name"]), get_task(config["task"]["name"])
    ranges = ranges_of(method.name, task.name)
    for path, usual in leaves(base_config(method.name, task.name)):
        section, _, name = path.rpartition(".")
        fields: Any = config
        for key in filter(None, section.split(".")):
            fields = fields.get(key, {})
            if not isinstance(fields, Mapping):
                raise UserError(f"{where}: config.{section} should be a JSON object")
        if path != MULTIPLIERS and name in fields:  # a run of an earlier version may have fewer
            check_type(f"{where}: config.{path}", fields[name], type(usual))
            if path in ranges:
                check_range(f"{where}: config.{path}", fields[name], ranges[path])


def _result_of(run: Run, step: int) -> Mapping[str, Any] | None:
    """The run's result, if it belongs to that step."""
    if run.result is None or run.result["step"] != step:
        return None
    where = run.workdir / "result.json"
    if run.result["selection"] not in SELECTIONS:
        raise UserError(f"{where}: selection={run.result['selection']!r:.80}: unknown")
    groups = [set(values) for values in run.result["metrics"].values()]
    if "questions" in run.result:  # groups by type of question; none where answers are withheld
        return run.result
    if not groups or any(names != groups[0] for names in groups):
        raise UserError(f"{where}: metrics should have groups of the same names")
    return run.result


def _load_backbone(run: Run, directory: str | None) -> Backbone:
    named = run.config["backbone"]
    local = not named.startswith("random:") and hub_name(named) is None
    if directory is None and local and not pathlib.Path(packaged.model(named)).is_dir():
        raise UserError(
            f"{run.workdir} was trained on the backbone {named}, which is no directory seen from "
            f"{pathlib.Path.cwd()}; pass --backbone=DIR"
        )
    field = "--backbone" if directory else f"{run.workdir / 'config.json'}: config.backbone"
    base = load_backbone(directory or named, seed=run.config["seed"], field=field)
    if base.fingerprint != run.identity["backbone"]:
        raise UserError(
            f"{run.workdir} was trained on a backbone of fingerprint {run.identity['backbone']}, "
            f"{base.source} has {base.fingerprint}; pass --backbone=DIR with the right one"
        )
    return base


def _adapter(run: Run, method: Method, base: Backbone, step: int) -> AdapterFiles:
    chosen = run.config["method"]
    options = {  # one that neither of the run's files names is newer than the run
        name: chosen[name] if name in chosen or f"method.{name}" in run.identity else usual
        for name, usual in method.options.items()
    }
    like = trainable_shapes(base, method, options)
    trained, identity = restore_trainable(run.workdir / "checkpoints", step, like)
    check_same(run.workdir, run.identity, identity)
    task = run.config["task"]
    return AdapterFiles(
        method=method.name,
        options=options,
        tensors={name: np.asarray(leaf) for name, leaf in flat_names(trained).items()},
        fingerprint=base.fingerprint,
        task={
            "name": task["name"],
            **{name: task[name] for name in get_task(task["name"]).kept},
            **{name: run.config["data"][name] for name in _DATA},
        },
        tokenizer=run.identity["tokenizer"],
        backbone=public(run.config["backbone"]),
        clips=kept_of_run(run.config),
    )


def _tokenizer_directory(run: Run, base: Backbone, directory: str | None) -> str:
    """The directory of the run's tokenizer; raises `UserError` if it is not found."""
    config, family = run.config, family_of(base.model.config)
    records = str(pathlib.Path(config["data"]["records"]) / family.records_tokenizer)
    expected = run.identity["tokenizer"]
    seen = []
    own = config["tokenizer"]
    if own and not directory:
        own = located(own, "config.tokenizer", tokenizer_of(family)).directory
    for place in (directory,) if directory else (own, base.source, records):
        if not place or place.startswith("random:"):
            continue
        if not pathlib.Path(place).is_dir():
            seen.append(f"{place} is no directory seen from {pathlib.Path.cwd()}")
            continue
        try:
            tokenizer = family.load_tokenizer(place)
        except UserError as error:
            seen.append(str(error))
            continue
        if tokenizer.fingerprint == expected:
            return place
        other = f"one of fingerprint {tokenizer.fingerprint}" if tokenizer.fingerprint else "none"
        seen.append(f"{place} has {other}")
    reasons = "".join(f"\n  {reason}" for reason in seen)
    raise UserError(
        f"{run.workdir} was trained with a tokenizer of fingerprint {expected!s:.80}, which is "
        f"not found; pass --tokenizer=DIR:{reasons}"
    )


def _write_merged(folder: pathlib.Path, method: Method, trained: Partition, tokenizer: str) -> None:
    model = trained.merge(trained.trainable, trained.frozen)
    assert method.merge is not None
    method.merge(model)
    fill_backbone(folder, model, tokenizer)


@plain_command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = command_parser("export", __doc__)
    add = parser.add_argument
    add("--workdir", required=True, metavar="RUN", help="workdir of a run of the main command")
    add("--to", required=True, metavar="DIR", help="new directory to write")
    add("--step", type=int, metavar="N", help="checkpoint; default: the one that was tested")
    add("--backbone", metavar="DIR", help="the run's backbone, if it has moved")
    add("--tokenizer", metavar="DIR", help="the run's tokenizer, if it has moved")
    add("--merge", action="store_true", help="write a backbone with the adapter in its weights")
    add("--license", default=UNKNOWN_LICENSE, help="for the model card, such as apache-2.0")
    add("--base-model", metavar="NAME", help="the backbone's name on the hub, for the model card")
    add("--push", metavar="REPO", help="upload DIR to this repository of the HuggingFace hub")
    args = parser.parse_args(argv)
    export(
        args.workdir,
        args.to,
        backbone=args.backbone,
        tokenizer=args.tokenizer,
        step=args.step,
        merge=args.merge,
        license=args.license,
        base_model=args.base_model,
    )
    print(f"wrote {args.to}", file=sys.stderr)
    if args.push:
        commit = push(args.to, args.push)
        print(f'load it by load_model(BACKBONE, "{commit.name}")', file=sys.stderr)
        print(commit.address)
    return 0


if __name__ == "__main__":
    sys.exit(main())
