"""``learnreg train ct``: slices or phantoms, compared with filtered back-projection, too."""

from __future__ import annotations

from functools import partial

import torch

from learnreg.commands.common import Scenario, announce
from learnreg.commands.options import TomographyConfig
from learnreg.commands.scans import Scans, scans_of
from learnreg.lower_level.constraints import Nonnegative
from learnreg.lower_level.data_terms import DataTerm
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.regularizers import Regularizer
from learnreg.report.comparison import Comparison, Scene, compare
from learnreg.result import Minimiser
from learnreg.solvers.solve import solve

__all__ = ["scenario"]

_COMPARISON_TOLERANCE = 1e-3
_VALIDATED, _VALIDATION_TOLERANCE = 4, 4e-3
_BASELINE_PIXELS, _BASELINE_TOLERANCE = 8 * 128**2, 1e-2
_BASELINE_WEIGHT = 3e-5


def scenario(config: TomographyConfig) -> Scenario:
    """Reconstruction of slices or phantoms, compared with filtered back-projection, too.

    Raises
    ------
    DataError, ConfigError: bad data or options, or astra-toolbox is missing.
    """
    announce(f"reading {config.data}, and what measures it")
    scans = scans_of(config)
    config = scans.config
    return Scenario(
        config=config,
        pairs=scans.pairs,
        lower_level=partial(_problem, scans, scans.data_term),
        described={"noise": config.noise, "photons": config.photons, "attenuation": config.attenuation},
        validate=partial(_psnr, scans.scenes[:_VALIDATED]),
        tv_weight=_BASELINE_WEIGHT,
        tv_samples=min(len(scans.pairs), max(3, _BASELINE_PIXELS // config.size**2)),
        tv_tolerance=_BASELINE_TOLERANCE,
        compare=partial(_compare, scans),
        input_key="psnr_fbp",
        title="Learned CT reconstruction",
    )


def _problem(scans: Scans, data_term: DataTerm, regularizer: Regularizer, minimiser: Minimiser) -> LowerLevelProblem:
    constraint = Nonnegative() if scans.config.nonnegative else None
    return LowerLevelProblem(
        scans.operator,
        regularizer,
        ridge=scans.config.ridge,
        constraint=constraint,
        data_term=data_term,
        minimiser=minimiser,
    )


def _compare(scans: Scans, problem: LowerLevelProblem, baseline: LowerLevelProblem) -> Comparison:
    learned, tv = (partial(solve, p, tolerance=_COMPARISON_TOLERANCE) for p in (problem, baseline))
    return compare(
        learned,
        tv,
        scans.scenes,
        input_name="FBP",
        setting=scans.setting,
        seed=scans.config.seed + 1,
        tolerance=_COMPARISON_TOLERANCE,
    )


def _psnr(scenes: list[Scene], problem: LowerLevelProblem) -> float:
    """Mean PSNR on held-out images, for the learning curve."""
    b, clean = (torch.stack(column) for column in zip(*((s.b, s.clean) for s in scenes), strict=True))
    x = solve(problem, b, _VALIDATION_TOLERANCE).x
    return float((-10.0 * torch.log10((x - clean).double().square().flatten(1).mean(1))).mean())
