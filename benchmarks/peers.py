"""Both papers' own PyTorch code beside ours, as one table: the same work, in turns, in one run.

    python benchmarks/peers.py --cma CHECKOUT --uniadapter CHECKOUT
    python benchmarks/peers.py --cma CHECKOUT --uniadapter CHECKOUT --steps 1    # to see it run

Checkouts are of LeapLabTHU/Cross-Modal-Adapter and RERV/UniAdapter; needs torch and transformers.
Each row comes from the benchmark that it names, with its defaults, and both sides have all cores.
The released scheme of re-ranking and the materialised q-score are written in JAX there, so that
they differ from ours in the scheme alone. `threads` is processor time over time: how many were at
work. A reference that is far below the number of cores was not at its best; then its ratio says
little.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from subprocess import PIPE
from typing import Any

from uniadapter_jax.common import children, signals

HERE = pathlib.Path(__file__).parent
HEAD = (
    "work",
    "ours, s",
    "theirs, s",
    "ours / theirs",
    "by processor time",
    "threads",
    "peak memory, GB",
    "of theirs",
    "file, MB",
)


def benchmark(script: str, *flags: str) -> list[dict[str, Any]]:
    """The JSON lines of a benchmark."""
    print(f"{script} {' '.join(flags)}", file=sys.stderr, flush=True)
    done = children.run([sys.executable, str(HERE / script), *flags], stdout=PIPE, text=True)
    done.check_returncode()
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def beside(work: str, found: dict[str, Any]) -> list[str]:
    """A row of two processes that took turns."""
    threads = f"{found['step_threads']:.2f} and {found['reference_threads']:.2f}"
    files = ""
    if "adapter_bytes" in found:
        ours, theirs = found["adapter_bytes"] / 1e6, found["reference_checkpoint_bytes"] / 1e6
        files = f"{ours:.1f} and {theirs:,.0f}"
    memory = found["peak_rss_gb"], found["reference_peak_rss_gb"]
    return [
        work,
        f"{found['step_seconds']:.3g}",
        f"{found['reference_seconds']:.3g}",
        f"{found['ratio']:.2f}",
        f"{found['cpu_ratio']:.2f}",
        threads,
        f"{memory[0]:.2f} and {memory[1]:.2f}",
        f"{memory[0] / memory[1]:.2f}",
        files,
    ]


def within(work: str, ours: float, theirs: float, by_processor: float | None = None) -> list[str]:
    """A row of two schemes in one process."""
    ratio = f"{ours / theirs:.3f} ({theirs / ours:.1f} x as fast)"
    processor = "" if by_processor is None else f"{1 / by_processor:.3f}"
    return [work, f"{ours:.3g}", f"{theirs:.3g}", ratio, processor, *[""] * 4]


def show(row: Sequence[str]) -> None:
    """A line of a table in Markdown, as soon as it is known."""
    print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cma", required=True, metavar="CHECKOUT")
    parser.add_argument("--uniadapter", required=True, metavar="CHECKOUT")
    parser.add_argument("--steps", type=int, default=5, help="steps that count")
    args = parser.parse_args()
    steps = ("--json", f"--steps={args.steps}")
    show(HEAD)
    show(["---"] * len(HEAD))
    cma = benchmark("train_step.py", f"--reference={args.cma}", "--no-peak", *steps)
    show(beside("step, ViT-B/32 + Cross-Modal Adapter, 8 clips x 12 frames", cma[0]))
    uniadapter = benchmark("matching_step.py", f"--reference={args.uniadapter}", *steps)
    show(beside("step, BLIP-base + UniAdapter r=512, 4 pictures, momentum", uniadapter[0]))
    schemes = {line.get("scheme"): line for line in benchmark("reranking.py", "--only=speed")}
    ours, theirs = (schemes[name] for name in ("ours", "released, 16 a call"))
    times = (ours["seconds_per_image"], theirs["seconds_per_image"], theirs["by_cpu_time"])
    show(within("re-ranking of a picture with 64 texts", *times))
    q_score = benchmark("scoring.py", "--only=speed")[0]
    times = (q_score["blockwise_s"], q_score["materialised_s"])
    show(within("q-score of 1,000 texts and 1,000 clips", *times))
    evaluation = benchmark("scoring.py", f"--reference={args.cma}")[0]
    show(beside("features of 1,000 x 1,000 to R@K of both directions", evaluation))


if __name__ == "__main__":
    signals.run(main)
