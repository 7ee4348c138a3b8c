"""Hunt for false bounds of chains of reweighted problems: random ones, against dense chains to rounding.

    python benchmarks/chain_hunt.py --problems 200 --seed 1

The exit code is 1 if a bound was violated.
"""

from __future__ import annotations

import argparse
import json
import sys

import harness  # noqa: F401  # makes tests/truth importable
import torch
from truth.chain_hunt import hunt_chains


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    summary = hunt_chains(arguments.problems, torch.Generator().manual_seed(arguments.seed))
    print(json.dumps(summary.report(), indent=2))
    return 1 if summary.violations else 0


if __name__ == "__main__":
    sys.exit(main())
