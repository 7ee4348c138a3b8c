"""What ``learnreg accuracy`` found: certified bounds of gradients beside their true errors, in tables and files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

import torch

from learnreg.errors import ConfigError, SolverError
from learnreg.hypergradients import METHODS

__all__ = [
    "CERTIFICATES",
    "AccuracyReport",
    "AccuracyRow",
    "CertificateKind",
    "PlainRow",
    "describe",
    "parse_methods",
    "parse_tolerances",
]

CertificateKind = Literal["published", "sharp"]

CERTIFICATES: tuple[CertificateKind, ...] = ("published", "sharp")


@dataclass(frozen=True)
class AccuracyRow:
    """One call of ``hypergradient``. Errors and bounds are relative to the norm of the gradient returned, as the
    tolerance is; effectivity is bound over error, at least 1 for a true bound. ``relative_bound`` is rigorous where
    ``certified``, else an estimate."""

    problem: str
    method: str
    tolerance: float
    relative_error: float
    relative_bound: float
    certified: bool
    operator_applications: int
    seconds: float
    certificate: str
    effectivity: float
    holds: bool


@dataclass(frozen=True)
class PlainRow:
    """One call of ``certify`` for the gradient formed at x, which is ``state_error`` ‖x^‖ away from the solution x^ in
    the given direction, and X, which solves the adjoint equation there to a relative residual of the same size."""

    problem: str
    direction: str
    state_error: float
    relative_error: float
    relative_bound: float
    certified: bool
    operator_applications: int
    seconds: float
    certificate: str
    effectivity: float
    holds: bool


@dataclass(frozen=True)
class AccuracyReport:
    """rows: hypergradients at given tolerances. plain: gradients at perturbed points, judged. reference_errors: of the
    reference gradient, relative, by problem."""

    rows: tuple[AccuracyRow, ...]
    plain: tuple[PlainRow, ...]
    reference_errors: dict[str, float]
    seed: int
    threads: int
    seconds: float

    @property
    def certified(self) -> list[AccuracyRow | PlainRow]:
        """All rows whose bound claims to be one."""
        every: list[AccuracyRow | PlainRow] = [*self.rows, *self.plain]
        return [row for row in every if row.certified]

    @property
    def violations(self) -> list[AccuracyRow | PlainRow]:
        """Certified rows whose error exceeds the bound."""
        return [row for row in self.certified if not row.holds]

    @property
    def coverage(self) -> float | None:
        """Share of certified rows whose bound is at least the error; None without certified rows."""
        return 1.0 - len(self.violations) / len(self.certified) if self.certified else None

    def effectivities(self, certificate: str, plain: bool) -> dict[str, float | None]:
        """Median and 95th percentile of bound over error of the certified rows."""
        rows: Sequence[AccuracyRow | PlainRow] = self.plain if plain else self.rows
        found = sorted(row.effectivity for row in rows if row.certified and row.certificate == certificate)
        if not found:
            return {"median": None, "percentile_95": None}
        return {"median": median(found), "percentile_95": found[math.ceil(0.95 * len(found)) - 1]}

    def check(self) -> None:
        """SolverError if a bound was violated."""
        if not self.violations:
            return
        first = self.violations[0]
        raise SolverError(
            f"VIOLATED: {len(self.violations)} of {len(self.certified)} certified bounds are below the true error, the "
            f"first on {first.problem!r} ({first.certificate}: bound {first.relative_bound:.3e}, error "
            f"{first.relative_error:.3e}). This must never happen: please report it with the output of --json."
        )

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "plain": [asdict(row) for row in self.plain],
            "coverage": self.coverage,
            "violations": len(self.violations),
            "effectivity": {
                what: {kind: self.effectivities(kind, what == "plain") for kind in CERTIFICATES}
                for what in ("rows", "plain")
            },
            "reference_errors": self.reference_errors,
            "seed": self.seed,
            "threads": self.threads,
            "torch": torch.__version__,
            "seconds": self.seconds,
        }


def parse_methods(text: str) -> list[str]:
    """Names of hypergradient methods from "all" or a list separated by commas.

    Raises
    ------
    ConfigError: an unknown name.
    """
    if text.strip() == "all":
        return list(METHODS)
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in METHODS:
            raise ConfigError(f"method {name!r} is unknown; expected 'all' or some of {', '.join(METHODS)}.")
    return names


def parse_tolerances(text: str) -> list[float]:
    """Positive numbers separated by commas, the largest first.

    Raises
    ------
    ConfigError: not a positive finite number.
    """
    found = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"tolerance {part.strip()!r}: expected positive numbers separated by commas, as 1,1e-2.")
        found.append(value)
    return sorted(set(found), reverse=True)


def describe(report: AccuracyReport) -> Iterator[str]:
    """Lines for people: a table per problem, then what ``certify`` says of plain gradients, then the coverage."""
    for name, error in report.reference_errors.items():
        own = [row for row in report.rows if row.problem == name]
        width = max(len(row.method) for row in own)
        yield f"{name} (reference gradient known to {error:.0e})"
        yield f"  {'':{width}}           {'published certificate':^41}  {'sharp certificate':^41}".rstrip()
        columns = "    error     bound  bound/error  applied"
        yield f"  {'method':{width}}  tolerance{columns} {columns}"
        for method, tolerance in dict.fromkeys((row.method, row.tolerance) for row in own):
            cells = [_cell(row) for row in own if (row.method, row.tolerance) == (method, tolerance)]
            yield f"  {method:{width}}  {tolerance:>9g}{' '.join(cells)}"
        yield ""
    yield "errors and bounds relative to the norm of the gradient; applied: operator applications"
    yield "~: an estimate, not certified; !: a certified bound above the tolerance"
    yield ""
    for what, title in (("rows", "hypergradients"), ("plain", "gradients at perturbed points, judged by certify")):
        for kind in CERTIFICATES:
            found = report.effectivities(kind, what == "plain")
            middle, most = found["median"], found["percentile_95"]
            said = "nothing certified" if middle is None else f"bound/error {middle:.3g} (median), {most:.3g} (95 %)"
            yield f"{title}, {kind}: {said}"
    yield _coverage_line(report)


def _cell(row: AccuracyRow) -> str:
    mark = "~" if not row.certified else "!" if row.relative_bound > row.tolerance else " "
    bound = f"{mark}{row.relative_bound:8.1e} {row.effectivity:12.3g}"
    return f"{row.relative_error:9.1e} {bound} {row.operator_applications:8d}"


def _coverage_line(report: AccuracyReport) -> str:
    count, total = len(report.certified), len(report.rows) + len(report.plain)
    if report.coverage is None:
        return f"coverage: nothing of {total} is certified, so that there is no bound to check"
    return (
        f"coverage: {100 * report.coverage:.4g} % ({count - len(report.violations)} of {count} certified bounds hold; "
        f"{total - count} not certified); {report.seconds:.0f} s"
    )
