"""A tiny problem and its report, for the tests of ``learnreg accuracy``."""

from __future__ import annotations

import dataclasses
import functools

import torch

import learnreg as lr
from learnreg.accuracy.measure import measure
from learnreg.accuracy.problems import AccuracyProblem
from learnreg.accuracy.report import AccuracyReport
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts

SIDE = 7


def tiny(name: str = "tiny", smoothing: float = 1e-2, ridge: float = 0.0) -> AccuracyProblem:
    generator = torch.Generator().manual_seed(3)
    x_true = torch.rand(2, 1, SIDE, SIDE, dtype=torch.float64, generator=generator)
    regularizer = FieldsOfExperts(2, 3, lr.PseudoHuber(smoothing, 0.1), generator=generator).double()
    problem = lr.LowerLevelProblem(Identity((1, SIDE, SIDE)), regularizer, ridge=ridge)
    b = x_true + 0.1 * torch.randn(x_true.shape, generator=generator)
    return AccuracyProblem(name, problem, b, lr.SquaredError(x_true))


@functools.cache
def tiny_report() -> AccuracyReport:
    """Two problems, two methods, two tolerances."""
    torch.set_num_threads(1)
    return measure([tiny(), tiny("other", ridge=0.5)], ["implicit", "piggyback"], [1.0, 1e-2], progress=False)


def violated(report: AccuracyReport) -> AccuracyReport:
    first = dataclasses.replace(report.rows[0], relative_error=2.0, relative_bound=1.0, effectivity=0.5, holds=False)
    return dataclasses.replace(report, rows=(first, *report.rows[1:]))
