"""``learnreg train ct``: from slices or phantoms to a run folder with a model, a report and a comparison with total
variation and filtered back-projection."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch

from learnreg.commands.common import comparison_figures, learn, training_figures, tune_total_variation
from learnreg.commands.initial import initial_regularizer
from learnreg.commands.options import TomographyConfig
from learnreg.commands.scans import scans_of
from learnreg.commands.scenes import Projector
from learnreg.lower_level.constraints import Box, Nonnegative
from learnreg.lower_level.data_terms import LeastSquares
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.regularizers import Regularizer, TotalVariation
from learnreg.report.comparison import Scene, compare
from learnreg.report.report import write_report
from learnreg.solvers.solve import solve
from learnreg.training.run_folder import RunFolder

__all__ = ["run"]

_COMPARISON_TOLERANCE = 1e-3
_VALIDATED, _VALIDATION_TOLERANCE = 4, 4e-3
_BASELINE_PIXELS, _BASELINE_TOLERANCE = 8 * 128**2, 1e-2
_BASELINE_WEIGHT = 3e-5


def run(config: TomographyConfig, resume: bool = False) -> dict[str, Any]:
    """Train, compare with filtered back-projection and with total variation whose weight was tuned on training images,
    and write the report.

    Returns the figures of the summary.

    Raises
    ------
    DataError, ConfigError: bad input, or astra-toolbox is missing. CheckpointError: the run folder cannot be used.
    """
    scans = scans_of(config)
    config, operator, pairs, scenes = scans.config, scans.operator, scans.pairs, scans.scenes
    folder = RunFolder(config.out, resume)
    options = dataclasses.asdict(config)
    folder.save_config(options)
    torch.manual_seed(config.seed)
    constraint = Nonnegative() if config.nonnegative else None
    data_term = scans.data_term
    problem = _problem(operator, initial_regularizer(config), config.ridge, constraint, data_term)
    described = {"noise": config.noise, "photons": config.photons, "attenuation": config.attenuation}
    result = learn(config, problem, pairs, folder, resume, described, partial(_psnr, problem, scenes[:_VALIDATED]))
    baseline_problem = _problem(operator, TotalVariation(weight=_BASELINE_WEIGHT), config.ridge, constraint, data_term)
    samples = min(len(pairs), max(3, _BASELINE_PIXELS // config.size**2))
    tv_weight = tune_total_variation(baseline_problem, pairs, samples, _BASELINE_TOLERANCE)
    comparison = compare(
        partial(solve, problem, tolerance=_COMPARISON_TOLERANCE),
        partial(solve, baseline_problem, tolerance=_COMPARISON_TOLERANCE),
        scenes,
        input_name="FBP",
        setting=scans.setting,
        seed=config.seed + 1,
        tolerance=_COMPARISON_TOLERANCE,
    )
    summary = {
        **comparison_figures(comparison, "psnr_fbp"),
        "tv_weight": tv_weight,
        "held_out": sorted(scene.name for scene in scenes),
        **training_figures(result),
        "model": str(folder.model_path),
    }
    report = write_report(folder, comparison, problem.regularizer, options, summary, "Learned CT reconstruction")
    return summary | {"report": str(report)}


def _problem(
    operator: Projector, regularizer: Regularizer, ridge: float, constraint: Box | None, data_term: LeastSquares
) -> LowerLevelProblem:
    return LowerLevelProblem(operator, regularizer, ridge=ridge, constraint=constraint, data_term=data_term)


def _psnr(problem: LowerLevelProblem, scenes: list[Scene]) -> float:
    """Mean PSNR on held-out images, for the learning curve."""
    b, clean = (torch.stack(column) for column in zip(*((s.b, s.clean) for s in scenes), strict=True))
    x = solve(problem, b, _VALIDATION_TOLERANCE).x
    return float((-10.0 * torch.log10((x - clean).double().square().flatten(1).mean(1))).mean())
