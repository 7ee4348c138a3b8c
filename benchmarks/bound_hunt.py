"""Hunt for false bounds: random problems, solved to rounding, against everything learnreg certifies.

    python benchmarks/bound_hunt.py --problems 2000 --seed 1 --json

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
from truth.hunt import Summary, hunt
from truth.rough_use import hunt_rough_use

ROUGH = "rough-use"


def run(problems: int, generator: torch.Generator, ranges: str) -> Summary:
    return hunt_rough_use(problems, generator) if ranges == ROUGH else hunt(problems, generator, RANGES[ranges], True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranges", choices=(*RANGES, ROUGH), default="ordinary")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line of stdout")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ["LEARNREG_CACHE"] = ""  # a matrix of a random scan is of no use to anybody
    summary = run(arguments.problems, torch.Generator().manual_seed(arguments.seed), arguments.ranges)
    report = summary.report()
    print(json.dumps(report) if arguments.json else json.dumps(report, indent=2))
    return 1 if summary.violations else 0


if __name__ == "__main__":
    sys.exit(main())
