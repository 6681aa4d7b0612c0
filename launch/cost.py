#!/usr/bin/env python3
"""What a run costs by its plan: chips x hours x the price of a chip and hour.

    python -m uniadapter_jax.plan --config=configs/msrvtt.py --topology=v5e:4x4 --json >plan.json
    python launch/cost.py plan.json --price=PRICE --steps=5000

The price is yours: this file knows none. `plan` gives the least time of a step that the chip's
published rates allow; --slower=2 says that a step takes twice as long. Steps follow from --epochs
where `plan` found the records, else from --steps. Compilation, evaluation, checkpoints and the time
until the machines are up come on top.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=pathlib.Path, help="what `plan --json` printed")
    parser.add_argument("--price", type=float, required=True, help="of one chip for an hour")
    parser.add_argument("--steps", type=int, help="of the whole run")
    parser.add_argument("--epochs", type=float, help="of the whole run, where plan saw the records")
    parser.add_argument("--slower", type=float, default=1.0, help="than plan's bound (1)")
    options = parser.parse_args()
    plan = json.loads(options.plan.read_text())
    problem = _problem(plan, options)
    if problem:
        print(f"error: {options.plan}: {problem}", file=sys.stderr)
        return 2
    chips, step = plan["slice"]["chips"], plan["estimate"]["step_seconds"] * options.slower
    steps = options.steps or options.epochs * plan["estimate"]["samples"] / plan["batch"]["global"]
    hours = steps * step / 3600
    print(
        f"{chips} chips x {hours:.3g} hours x {options.price:g} = "
        f"{chips * hours * options.price:.2f} ({steps:.0f} steps of {step * 1000:.1f} ms"
        f"{', the least that the rates allow' if options.slower == 1 else ''})"
    )
    return 0


def _problem(plan: dict[str, Any], options: argparse.Namespace) -> str | None:
    """Why there is no cost."""
    if not plan["fits"]:
        return "the run does not fit"
    if "estimate" not in plan:
        return f"no estimate for {plan['slice']['name']}"
    if options.steps is None and options.epochs is None:
        return "say --steps or --epochs"
    if options.steps is None and "samples" not in plan["estimate"]:
        return "plan did not see the records: say --steps"
    return None


if __name__ == "__main__":
    sys.exit(main())
