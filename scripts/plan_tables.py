"""What the papers' models need on TPU slices: docs/plans.md and its picture, one plan a case.

    pip install -e '.[tpu,plot]'
    python scripts/plan_tables.py            # compiles what docs/plans.jsonl has not got, writes
    python scripts/plan_tables.py --only='ViT-L/14,.*v5e-8'
    python scripts/plan_tables.py --write    # only writes, from docs/plans.jsonl

No TPU and no weights are needed. A case takes a core one minute to several (a BLIP on a v6e eight),
and is kept as soon as it is there, so what was stopped goes on; delete
docs/plans.jsonl to compile all again (some hours of a core). Where a program does not fit, `plan`
names the smallest change with which it does, and the numbers are those with it. On other slices of
the same chip, with as many clips a chip, that change is tried first.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import argparse
import dataclasses
import io
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterable, Iterator
from subprocess import PIPE
from typing import Any

import jax

from uniadapter_jax.common import children, signals
from uniadapter_jax.common.files import write_whole
from uniadapter_jax.parallel.progress import duration, say
from uniadapter_jax.planning.abstract import TRAIN
from uniadapter_jax.planning.chips import CHIPS

ROOT = pathlib.Path(__file__).parents[1]
KEPT, PAGE, PICTURE = (ROOT / "docs" / f for f in ("plans.jsonl", "plans.md", "weak_scaling.svg"))

# By Google's names; that of a v5p counts TensorCores, of which a chip has two.
SLICES = {
    "v5e-8": ("v5e:2x4", 8),
    "v5e-64": ("v5e:8x8", 64),
    "v5e-256": ("v5e:16x16", 256),
    "v5p-64": ("v5p:2x4x4", 32),
    "v6e-64": ("v6e:8x8", 64),
}
WEAK = {
    8: "v5e:2x4",
    16: "v5e:4x4",
    32: "v5e:4x8",
    64: "v5e:8x8",
    128: "v5e:8x16",
    256: "v5e:16x16",
}

_GIB = 2**30
_HEAD = """# Plans of the papers' models

Written by `python scripts/plan_tables.py`, which compiles every case with the TPU's own compiler
(see [scale.md](scale.md)); nothing here was measured on a TPU. Products are in bfloat16, trainables
in float32. `with` lists the smallest change of the config, if any, with which the training step
fits. HBM is what it needs on a chip, of the chip's; `sent` what a chip sends in a step. `at best`
is the bound of that step by the chip's published rates, and what sets it. At that bound stand
samples/s, of the whole slice, and useful FLOP, of the peak. There are two batches: the paper's, and
16 clips (or 32 pictures) a chip. A v5p-64 has 32 chips. UniAdapter's configs begin with remat=full;
its queue of 57,600 is cut to whole batches. `of peak` leaves out the products of the loss, which
`plan` counts by now: less than 0.1 % of a step. BLIP's cases are from before dropout's bits were a
hash: with it VQA's of 2,048 on a v5e-64 and a v6e-64 need 1 to 3 % less HBM, and the bound moves by
less than 1 %.

All rows have plain attention (`compute.attention=xla`). By default a TPU now runs kernels in its
place; [scale.md](scale.md#attention-as-a-kernel) has what that changes.
"""
_TABLE = """\
| slice | batch | a chip | with | HBM, GiB | sent, MB | at best, ms | samples/s | of peak |
|---|---|---|---|---|---|---|---|---|"""
_WEAK = """## Weak scaling

Cross-Modal Adapter, ViT-B/32, 12 frames, 16 clips a chip, on v5e slices: what a chip holds stays,
and what it sends grows no faster than the features that the dense loss gathers, those of all texts.

![HBM and traffic of a chip over chips](weak_scaling.svg)

| loss | chips | batch | HBM, GiB | sent, MB | features of all texts, MB |
|---|---|---|---|---|---|"""


@dataclasses.dataclass(frozen=True)
class Model:
    """What is planned: `plan`'s flags, the paper's global batch, samples a chip, ITC's queue."""

    title: str
    flags: tuple[str, ...]
    batch: int
    per_chip: int
    queue: int = 0


@dataclasses.dataclass(frozen=True)
class Case:
    """One plan."""

    model: Model
    slice: str
    topology: str
    chips: int
    batch: int

    @property
    def name(self) -> str:
        """Unique."""
        return f"{self.model.title}, {self.slice}, batch {self.batch}"


def _cross_modal(backbone: str, title: str, frames: int, words: int) -> Model:
    flags = ("msrvtt", backbone, f"data.frames={frames}", f"data.words={words}")
    return Model(f"Cross-Modal Adapter, {title}, {frames} frames", flags, 128, 16)


_SIZES = {
    "vit-b-32": "ViT-B/32",
    "vit-b-16": "ViT-B/16",
    "vit-l-14": "ViT-L/14",
    "vit-l-14-336": "ViT-L/14@336",
}
MODELS = [
    *(
        _cross_modal(name, title, frames, words)
        for name, title in _SIZES.items()
        for frames, words in ((12, 32), (64, 64))  # of DiDeMo and ActivityNet the second
    ),
    Model("UniAdapter, BLIP-base, retrieval, 384 px", ("coco", "blip-base-384"), 256, 32, 57_600),
    Model("UniAdapter, BLIP-base, VQA, 480 px", ("vqav2", "blip-base-capfilt-480"), 128, 32),
    Model(
        "UniAdapter, BLIP-base, 8 frames, 224 px",
        ("msrvtt_uniadapter", "blip-base-224"),
        64,
        16,
        57_600,
    ),
]
_GENERAL = ("compute.remat", "train.accumulation", "mesh.weights", "mesh.fsdp")  # on any slice
RING = dataclasses.replace(
    MODELS[0], title=f"{MODELS[0].title}, ring loss", flags=(*MODELS[0].flags, "task.loss=ring")
)


def cases() -> list[Case]:
    """All: those of the tables, then what weak scaling adds."""
    found = [
        Case(model, name, topology, chips, batch)
        for model in MODELS
        for name, (topology, chips) in SLICES.items()
        for batch in dict.fromkeys((model.batch, model.per_chip * chips))
    ]
    known = set(found)
    weak = [case for model in (MODELS[0], RING) for case in weak_scaling(model)]
    return found + [case for case in weak if case not in known]


def weak_scaling(model: Model) -> Iterator[Case]:
    """The model on ever more chips of a v5e."""
    for chips, topology in WEAK.items():
        yield Case(model, f"v5e-{chips}", topology, chips, model.per_chip * chips)


def plan(case: Case, fields: dict[str, Any]) -> dict[str, Any]:
    """What `python -m uniadapter_jax.plan` says of a case with these fields of the config."""
    config, backbone, *own = case.model.flags
    fields = {
        **{"compute.dtype": "bfloat16", "compute.attention": "xla"},
        **{"train.batch_size": case.batch, **fields},
    }
    if case.model.queue:  # whole batches fill it
        fields["task.queue"] = case.model.queue // case.batch * case.batch
    command = [sys.executable, "-m", "uniadapter_jax.plan", f"--config=configs/{config}.py"]
    command += [f"--backbone-config={backbone}", f"--topology={case.topology}"]
    command += ["--train-only", "--json"]
    command += [f"--config.{field}" for field in own]
    command += [f"--config.{field}={value}" for field, value in fields.items()]
    # On its own, so that what the compiler keeps goes with it.
    done = children.run(command, cwd=ROOT, stdout=PIPE, stderr=PIPE, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)


def measure(case: Case, first: dict[str, Any]) -> dict[str, Any]:
    """A case's line in `KEPT`. first: fields to try before any other."""
    start, fields = time.perf_counter(), dict(first)
    found = plan(case, fields)
    step, change = found.get("programs", {}).get(TRAIN), found.get("changes", {}).get(TRAIN)
    if change:
        step, fields = change["program"], fields | change["fields"]
    fits = step is not None and step["fits"]
    line = {"case": case.name, "topology": case.topology, "chips": case.chips, "batch": case.batch}
    line |= {"fits": fits, "fields": fields, **(_numbers(step) if fits else {})}
    return {**line, "seconds": round(time.perf_counter() - start)}


def _numbers(step: dict[str, Any]) -> dict[str, Any]:
    return {
        "bytes": step["needed_bytes"],
        "limit": step["limit_bytes"],
        "sent": {kind: round(one["sent"]) for kind, one in step["collectives"].items()},
        "useful_flops": step.get("useful_flops"),
        "executed_flops": step["executed_flops"],
        "step_seconds": step["estimate"]["seconds"],
        "bound": step["estimate"]["bound"],
    }


def compile_all(chosen: list[Case], kept: dict[str, dict[str, Any]]) -> None:
    """Plans the chosen cases that are not kept, and keeps them."""
    todo = [case for case in chosen if case.name not in kept]
    begun = time.perf_counter()
    for number, case in enumerate(todo, 1):
        line = measure(case, _hint(case, kept.values()))
        with KEPT.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        kept[case.name] = line
        spent = time.perf_counter() - begun
        left = duration(spent / number * (len(todo) - number))
        say(f"{number}/{len(todo)} {case.name}: {line['seconds']} s | ETA {left}")


def _hint(case: Case, kept: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What made this model fit with as many samples a chip on another slice of the chip."""
    family, _, _ = case.topology.partition(":")
    for line in kept:
        alike = line["case"].startswith(f"{case.model.title}, {family}-")
        if alike and line["fits"] and line["batch"] * case.chips == case.batch * line["chips"]:
            fields = {name: line["fields"][name] for name in _GENERAL if name in line["fields"]}
            return fields | ({"mesh.data": -1} if "mesh.fsdp" in fields else {})
    return {}


def page(kept: dict[str, dict[str, Any]]) -> str:
    """`PAGE`, from the lines of `KEPT` by case."""
    lines = [_HEAD]
    for model in MODELS:
        rows = [(case, kept.get(case.name)) for case in cases() if case.model is model]
        rows = [(case, line) for case, line in rows if case.slice in SLICES]
        lines += [f"## {model.title}\n", _TABLE, *(_row(case, line) for case, line in rows), ""]
    lines += [_WEAK]
    for model in (MODELS[0], RING):
        for case in weak_scaling(model):
            lines.append(_weak_row(case, kept.get(case.name)))
    return "\n".join(lines) + "\n"


def read_kept() -> dict[str, dict[str, Any]]:
    """The lines of `KEPT` by case."""
    lines = KEPT.read_text().splitlines() if KEPT.exists() else []
    return {line["case"]: line for line in map(json.loads, lines)}


def _row(case: Case, line: dict[str, Any] | None) -> str:
    cells = [case.slice, str(case.batch), f"{case.batch / case.chips:g}"]
    if line is None:
        rest = ["not compiled yet"]
    elif line["fits"]:
        peak = CHIPS[case.topology.partition(":")[0]].peak
        seconds, size = line["step_seconds"], line["fields"].get("train.batch_size", case.batch)
        share = 100 * line["useful_flops"] / (seconds * peak)
        rest = [
            ", ".join(f"{name}={value}" for name, value in line["fields"].items()) or "as it is",
            f"{line['bytes'] / _GIB:.1f} of {line['limit'] / _GIB:.0f}",
            f"{sum(line['sent'].values()) / 1e6:,.1f}",
            f"{1e3 * seconds:,.1f} ({line['bound']})",
            f"{size / seconds:,.0f}",
            f"{share:.0f} %",
        ]
    elif case.batch < case.chips:
        rest = [f"n/a: {case.batch} < {case.chips} chips"]
    else:
        rest = ["no change that `plan` tries makes it fit"]
    cells += rest + [""] * (9 - len(cells) - len(rest))
    return f"| {' | '.join(cells)} |"


def _weak_row(case: Case, line: dict[str, Any] | None) -> str:
    name = case.model.flags[-1].removeprefix("task.loss=") if case.model is RING else "dense"
    cells = [name, str(case.chips), str(case.batch)]
    if line is None:
        return f"| {' | '.join([*cells, 'not compiled yet', '', ''])} |"
    sent = sum(line["sent"].values())
    cells += [f"{line['bytes'] / _GIB:.3f}", f"{sent / 1e6:,.2f}", f"{_texts(case) / 1e6:,.2f}"]
    return f"| {' | '.join(cells)} |"


def _texts(case: Case) -> int:
    """Bytes of the texts' features, which the dense loss gathers."""
    return 4 * 512 * case.batch


def draw(kept: dict[str, dict[str, Any]]) -> None:
    """Weak scaling: memory and traffic of a chip over chips."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "uniadapter_jax"  # a picture is the same twice
    from matplotlib import pyplot

    figure, (memory, traffic) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for model, label in ((MODELS[0], "dense loss"), (RING, "ring loss")):
        found = [(case, kept[case.name]) for case in weak_scaling(model) if case.name in kept]
        chips = [case.chips for case, _ in found]
        memory.plot(chips, [line["bytes"] / _GIB for _, line in found], "o-", label=label)
        sent = [sum(line["sent"].values()) / 1e6 for _, line in found]
        traffic.plot(chips, sent, "o-", label=label)
    texts = [(case.chips, _texts(case) / 1e6) for case in weak_scaling(MODELS[0])]
    traffic.plot(*zip(*texts, strict=True), "k--", label="features of all texts")
    whole = CHIPS["v5e"].hbm / _GIB
    memory.set(ylabel=f"HBM of a chip (GiB of {whole:.0f})", ylim=(0, whole), title="memory")
    traffic.set(ylabel="sent by a chip (MB a step)", yscale="log", title="traffic")
    for axes in (memory, traffic):
        axes.set(xlabel="chips (v5e), 16 clips each", xscale="log", xticks=list(WEAK))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes.legend()
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    write_whole(PICTURE, drawn.getvalue())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="regular expression of cases' names")
    parser.add_argument("--write", action="store_true", help="compile nothing")
    given = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # this process computes nothing
    kept = read_kept()
    if not given.write:
        compile_all([case for case in cases() if re.search(given.only, case.name)], kept)
    write_whole(PAGE, page(kept))
    draw(kept)
    say(f"{PAGE.relative_to(ROOT)}, {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    signals.run(main)
