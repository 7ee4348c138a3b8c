"""Hunt for false bounds: random problems, solved to rounding, against everything learnreg certifies.

    python benchmarks/bound_hunt.py --problems 2000 --seed 1 --json
    python benchmarks/bound_hunt.py --problems 1000 --methods unrolled,equilibrium-propagation

The exit code is 1 if a bound was violated.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

import harness  # noqa: F401  # makes tests/truth importable
import torch
from truth.draw import RANGES
from truth.hunt import METHODS, Summary, hunt
from truth.rough_use import hunt_rough_use

ROUGH = "rough-use"


def run(problems: int, generator: torch.Generator, ranges: str, methods: list[str]) -> Summary:
    if ranges == ROUGH:
        return hunt_rough_use(problems, generator)
    return hunt(problems, generator, RANGES[ranges], True, methods)


def method_names(text: str) -> list[str]:
    """Names separated by commas."""
    names = text.split(",")
    if unknown := set(names) - METHODS.keys():
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(METHODS)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranges", choices=(*RANGES, ROUGH), default="ordinary")
    parser.add_argument("--methods", type=method_names, default=[], help="hold only these against each problem")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line of stdout")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ["LEARNREG_CACHE"] = ""  # a matrix of a random scan is of no use to anybody
    summary = run(
        arguments.problems, torch.Generator().manual_seed(arguments.seed), arguments.ranges, arguments.methods
    )
    report = summary.report()
    print(json.dumps(report) if arguments.json else json.dumps(report, indent=2))
    return 1 if summary.violations else 0


if __name__ == "__main__":
    sys.exit(main())
