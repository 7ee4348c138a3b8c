"""What an acceptance check found: each property with the number measured and its threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from learnreg.errors import OperatorError

__all__ = ["Property", "Report", "broken", "examine", "failure", "holds", "judged", "run_check", "skipped"]

CaseT = TypeVar("CaseT")


@dataclass(frozen=True)
class Property:
    """One property: it holds when the measured ``value`` is at most ``threshold``.

    measures: what the value is; "not checked: ..." with the value 0 for a property that does not apply. problem: where
    it fails, what is wrong and what to do about it.

    Parameters
    ----------
    name: of the property.
    passed: whether the value is at most the threshold.

    Examples
    --------
    >>> report = lr.testing.examine_operator(lr.operators.Identity((1, 4, 4)))
    >>> all(found.passed for found in report.properties)
    True
    """

    name: str
    value: float
    threshold: float
    passed: bool
    measures: str = ""
    problem: str = ""

    def __str__(self) -> str:
        mark = "ok  " if self.passed else "FAIL"
        numbers = f"{self.value:9.2e} <= {self.threshold:<8.2g}" if self.threshold > 0 else " " * 21
        return f"{mark}  {self.name:<22} {numbers} {self.problem or self.measures}"


@dataclass(frozen=True)
class Report:
    """The properties of ``subject`` in the order they were checked; checks end at the first that fails.

    Parameters
    ----------
    properties: in the order they were examined.

    Examples
    --------
    >>> report = lr.testing.examine_operator(lr.operators.Identity((1, 4, 4)))
    >>> type(report).__name__, len(report.properties) > 3
    ('Report', True)
    """

    subject: str
    properties: tuple[Property, ...]

    @property
    def failed(self) -> Property | None:
        """The property that fails; None when all hold."""
        return next((found for found in self.properties if not found.passed), None)

    @property
    def ok(self) -> bool:
        return self.failed is None

    def __getitem__(self, name: str) -> Property:
        """The property of that name, KeyError when it was not checked."""
        for found in self.properties:
            if found.name == name:
                return found
        raise KeyError(name)

    def __iter__(self) -> Iterator[Property]:
        return iter(self.properties)

    def __str__(self) -> str:
        return "\n".join([self.subject, *(f"  {found}" for found in self.properties)])

    def require(self) -> Report:
        """Itself, or OperatorError that names the property that fails."""
        if self.failed is not None:
            raise failure(self.subject, self.failed)
        return self


def failure(subject: str, failed: Property) -> OperatorError:
    """The error for a property that fails."""
    measured = ""
    if failed.threshold > 0 and math.isfinite(failed.value):
        measured = f" ({failed.measures}: {failed.value:.3g}, allowed {failed.threshold:.3g})"
    return OperatorError(f"{subject}: the property '{failed.name}' fails: {failed.problem}{measured}.", failed.name)


def judged(name: str, value: float, threshold: float, measures: str, problem: str | Callable[[], str]) -> Property:
    """The property as the measured value says (NaN fails). ``problem`` says what is wrong if it is too large."""
    passed = value <= threshold
    text = "" if passed else problem if isinstance(problem, str) else problem()
    return Property(name, value, threshold, passed, measures, text)


def holds(name: str, measures: str) -> Property:
    """A property without a number that holds."""
    return Property(name, 0.0, 0.0, True, measures)


def broken(name: str, problem: str, value: float = math.inf) -> Property:
    """A property without a threshold that fails."""
    return Property(name, value, 0.0, False, "", problem)


def skipped(name: str, why: str) -> Property:
    """A property that does not apply."""
    return Property(name, 0.0, 0.0, True, f"not checked: {why}")


def examine(subject: str, case: CaseT, checks: Mapping[str, Callable[[CaseT], Property]]) -> Report:
    """Run the checks one after the other up to the first that fails; what a check raises is a failure of it."""
    found: list[Property] = []
    for name, check in checks.items():
        found.append(run_check(name, check, case))
        if not found[-1].passed:
            break
    return Report(subject, tuple(found))


def run_check(name: str, check: Callable[[CaseT], Property], case: CaseT) -> Property:
    """The property as the check finds it; what the check raises is a failure of it."""
    try:
        return check(case)
    except Exception as error:
        text = " ".join(str(error).split())
        return broken(name, f"{type(error).__name__} was raised: {text[:400]}")
