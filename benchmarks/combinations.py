"""Hypergradients of every data term on every kind of image with every registered regularizer, against a dense truth.

    python benchmarks/combinations.py --record

What is refused is listed with the reason, and what has no rigorous bound. The exit code is 1 if a certified error is
above 1e-6 of the gradient's norm or above its bound.
"""

from __future__ import annotations

import itertools
import sys

from harness import Table, arguments, finish
from truth.combinations import DATA_TERMS, FAMILIES, KINDS, Compared, compared, generator_of

SIDES = {"volume": 6, "signal": 24}
SIDE = 8
LARGEST = 1e-6
ROUNDING = 1e-12

TEXT = """Relative errors of hypergradients in all parameters, those of the data term and the ridge included, asked for
to 1e-7, with images of 8 x 8 and filters of 3 x 3 (volumes of 6³ and 3³, signals of 24 and 3): against Newton's method
with the dense Hessian of `problem.energy` in float64, for regularizers with latent variables with the dense matrices of
the joint problem. The largest over grey images, separate and joint colours, complex images, volumes and signals, as far
as they are not refused."""


def row_of(family: str, found: dict[tuple[str, str], Compared]) -> dict[str, object]:
    """The largest error of each data term, and how many kinds of images there are of each family."""
    row: dict[str, object] = {"regularizer": family}
    for term in DATA_TERMS:
        known = [found[term, kind] for kind in KINDS if not found[term, kind].refused]
        row[term] = max((c.error for c in known), default=None)
    row["kinds"] = sum(any(not found[term, kind].refused for term in DATA_TERMS) for kind in KINDS)
    return row


def refusals(found: dict[tuple[str, str, str], Compared]) -> list[str]:
    """Each reason once, with what it is said of."""
    reasons: dict[str, list[tuple[str, str, str]]] = {}
    for case, result in found.items():
        if result.refused:
            reasons.setdefault(f"{case[0]}: {result.refused}", []).append(case)
    listed = []
    for reason, cases in reasons.items():
        kinds, terms = (list(dict.fromkeys(case[i] for case in cases)) for i in (1, 2))
        everywhere = len(cases) == len(kinds) * len(terms)
        with_terms = "all data terms" if everywhere and len(terms) == len(DATA_TERMS) else ", ".join(terms)
        listed.append(f"refused, {'; '.join(kinds)} with {with_terms}: {reason}")
    return listed


def measure(families: list[str], seed: int) -> dict[tuple[str, str, str], Compared]:
    """All combinations of these families, printed one by one."""
    found = {}
    for case in itertools.product(families, KINDS, DATA_TERMS):
        family, kind, term = case
        result = compared(term, kind, family, SIDES.get(kind, SIDE), generator_of(*case, seed))
        figures = f"{result.error:.1e} {result.least_part:.1e} {result.bound:.1e} {result.certified}"
        print(*case, result.refused or figures, sep=" | ", flush=True)
        found[case] = result
    return found


def is_right(result: Compared) -> bool:
    """Within its bound, and right in each parameter; without one it claims nothing."""
    within = result.error <= result.bound + ROUNDING and max(result.error, result.least_part) <= LARGEST
    return within or not result.certified


def main() -> int:
    options = arguments(
        __doc__ or "",
        quick={"SIDE": 4, "SIDES": {"volume": 3, "signal": 8}, "families": "tv;ridge"},
        families={"default": "", "help": "of these alone, separated by semicolons"},
        seed={"type": int, "default": 0},
    )
    chosen = options.families.split(";") if options.families else list(FAMILIES)
    found = measure(chosen, options.seed)
    formed = {case: result for case, result in found.items() if not result.refused}
    wrong = {case: result for case, result in formed.items() if not is_right(result)}
    rows = [row_of(f, {(t, k): found[f, k, t] for k, t in itertools.product(KINDS, DATA_TERMS)}) for f in chosen]
    worst, least = (max(getattr(r, name) for r in formed.values() if r.certified) for name in ("error", "least_part"))
    notes = [
        f"{len(found)} combinations, {len(found) - len(formed)} refused; of the others {len(formed) - len(wrong)} of "
        f"{len(formed)} within their bounds and {LARGEST:g}, {sum(r.certified for r in formed.values())} certified; "
        f"largest relative error {worst:.1e}, of one parameter by itself (over its norm and a thousandth of the whole "
        f"gradient's) {least:.1e}",
        *(f"WRONG: {' | '.join(case)}: {result}" for case, result in wrong.items()),
        *(
            f"no bound: {' | '.join(case)}: {result.error:.1e}"
            for case, result in formed.items()
            if not result.certified
        ),
        *refusals(found),
    ]
    command = "python benchmarks/combinations.py --record"
    tracked = {"largest relative error": worst}
    title = "Every data term, kind of image and regularizer"
    finish(Table("combinations", title, command, TEXT, rows, tracked, notes, 36), options)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
