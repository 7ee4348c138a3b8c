"""The report of a run that was started from Python: what the command line writes, on samples of the data."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learnreg.errors import LearnregError
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.operators import Identity
from learnreg.regularizers import TotalVariation
from learnreg.report.comparison import Comparison, Quality, Scene, compare, magnitude, quality
from learnreg.report.lower_level import Conditioning, conditioning, weak_convexity
from learnreg.report.noise_sweep import NoiseSweep, noise_sweep, scaled
from learnreg.report.report import Report, missing_package, write_report
from learnreg.result import Solution
from learnreg.solvers.solve import solve
from learnreg.training.baseline import tune_total_variation
from learnreg.training.options import TrainingOptions
from learnreg.training.result import TrainResult
from learnreg.training.samples import Sample

__all__ = ["Samples", "can_report", "notes_of", "report_run"]

_SHOWN, _TOLERANCE, _BASELINE_TOLERANCE = 8, 1e-3, 5e-3
_SMALLEST_FOR_SSIM = 7
_NOT_HELD_OUT = (
    "No samples were held out: all numbers and images below are of samples that were trained on. validation=0.1 holds "
    "some out."
)


def can_report() -> bool:
    """Whether the packages for reports are there; a warning says what is missing."""
    missing = missing_package()
    if missing:
        warnings.warn(f"train(out=...): there will be no report.html: {missing}", stacklevel=3)
    return not missing


@dataclass(frozen=True)
class Samples:
    """A few of those trained on, and those that were held out, if any."""

    first: Sequence[Sample]
    held_out: Sequence[Sample]


def report_run(
    folder: Path, problem: LowerLevelProblem, options: TrainingOptions, samples: Samples, result: TrainResult
) -> None:
    """Write report.html into a folder; what was learned is saved already, so that a report that fails is a warning."""
    try:
        _report(folder, problem, options, samples, result)
    except LearnregError as error:
        warnings.warn(f"train(out=...): the report could not be written: {error}", stacklevel=3)


def _report(
    folder: Path, problem: LowerLevelProblem, options: TrainingOptions, known: Samples, result: TrainResult
) -> None:
    problem = copy.deepcopy(problem).to("cpu")
    first, held_out = ([_on_cpu(s) for s in part] for part in (known.first, known.held_out))
    samples = held_out or first
    samples = [s for s in samples if s.kind[:2] == samples[0].kind[:2]][:_SHOWN]
    baseline = _baseline(problem, [s for s in first if s.kind == samples[0].kind] or samples[:1])
    notes = [] if held_out else [_NOT_HELD_OUT]
    report = Report(
        title=f"Learned {type(problem.regularizer).__name__}",
        comparison=_comparison(problem, baseline, samples),
        regularizer=_drawn(problem, samples),
        rows=result.rows,
        config={name: value for name, value in asdict(options).items() if isinstance(value, (str, int, float))},
        summary={name: getattr(result, name) for name in ("updates", "ended_by", "seconds", "operator_applications")}
        | weak_convexity(problem),
        conditioning=_conditionings(problem, baseline, samples[0]),
        sweep=_sweep(problem, baseline, samples, [s.sigma for s in first if s.sigma is not None]),
        held_out=bool(held_out),
        notes=[*notes, *notes_of(result)],
    )
    write_report(folder, report)


def notes_of(result: TrainResult) -> list[str]:
    """What a report says of how the run ended."""
    if result.best_update is None:
        return []
    return [
        f"Early stopping: of {result.updates} updates the parameters are those after number {result.best_update}, the "
        "best ones on the samples held out for validation."
    ]


def _on_cpu(sample: Sample) -> Sample:
    return Sample(sample.b.cpu(), sample.x_true.cpu(), sample.sigma)


def _of(problem: LowerLevelProblem, sample: Sample) -> Any:
    """The problem for samples of this kind."""
    return problem.frozen().of_kind(tuple(sample.x_true.shape), sample.sigma)


def _drawn(problem: LowerLevelProblem, samples: Sequence[Sample]) -> Any:
    """The regularizer at the noise level of the first sample."""
    level = samples[0].sigma
    return problem.active_regularizer if level is None else problem.regularizer.at(level)


def _baseline(problem: LowerLevelProblem, samples: Sequence[Sample]) -> LowerLevelProblem | None:
    """The same problem with total variation, its weight tuned on samples of one kind; None where there is none for such
    images, or where it cannot be solved."""
    channels, *sides = samples[0].x_true.shape
    if not 1 <= len(sides) <= 3:
        return None
    kind = getattr(problem.regularizer, "images", None)
    options = kind.config() if kind is not None else {"channels": channels, "dimensions": len(sides)}
    try:
        level = samples[0].sigma or _noise(problem, samples)
        regularizer = TotalVariation(max(level, 1e-4), **options).to(samples[0].x_true.dtype)
        baseline = _with(problem, regularizer, tuple(samples[0].x_true.shape))
        pairs = [(s.b, s.x_true) for s in samples]
        size = math.sqrt(float(samples[0].x_true.double().square().mean()))
        tune_total_variation(baseline, pairs, len(pairs), _BASELINE_TOLERANCE * max(size, 1e-30))
    except LearnregError:
        return None
    return baseline


def _with(
    problem: LowerLevelProblem, regularizer: TotalVariation, shape: tuple[int, ...] | None = None
) -> LowerLevelProblem:
    """The problem with another regularizer, for images of this shape."""
    return LowerLevelProblem(
        problem.operator if shape is None else problem.operator.on(shape),
        regularizer,
        ridge=problem.ridge_value,
        data_term=problem.data_term,
        constraint=problem.constraint,
    )


@torch.no_grad()
def _noise(problem: LowerLevelProblem, samples: Sequence[Sample]) -> float:
    """The root mean square of what measurements have besides those of the ground truths."""
    operator = problem.operator.on(tuple(samples[0].x_true.shape))
    return float((samples[0].b - operator(samples[0].x_true[None])[0]).double().square().mean().sqrt())


def _comparison(
    problem: LowerLevelProblem, baseline: LowerLevelProblem | None, samples: Sequence[Sample]
) -> Comparison:
    def learned(b: Tensor) -> Solution:
        return solve(_of(problem, next(remaining)), b, tolerance)

    def tv(b: Tensor) -> Solution:
        """Its weight is proportional to the noise, where the samples say theirs."""
        assert baseline is not None
        assert isinstance(baseline.regularizer, TotalVariation)
        level, tuned = next(levels), samples[0].sigma
        adapted = copy.copy(baseline.regularizer)
        if level is not None and tuned is not None:
            adapted = scaled(baseline.regularizer, level / tuned)
        return solve(_with(baseline, adapted), b, tolerance)

    size = math.sqrt(float(samples[0].x_true.double().square().mean()))
    tolerance, remaining, levels = _TOLERANCE * max(size, 1e-30), iter(samples), (s.sigma for s in samples)
    return compare(
        learned,
        None if baseline is None else tv,
        [_scene(problem, sample, i) for i, sample in enumerate(samples)],
        input_name="measured" if samples[0].b.shape == samples[0].x_true.shape else "back-projected",
        seed=None,
        tolerance=tolerance,
        measure=_measure,
    )


@torch.no_grad()
def _scene(problem: LowerLevelProblem, sample: Sample, number: int) -> Scene:
    """The input image is the measurement, where it is an image, or else its back-projection A^T b, scaled to fit b."""
    name = f"sample {number}" if sample.sigma is None else f"sample {number}, noise level {sample.sigma:.3g}"
    shown = magnitude if len(sample.x_true) == 2 else _image
    if sample.b.shape == sample.x_true.shape:
        return Scene(name, sample.x_true, sample.b, sample.b, shown)
    operator = problem.operator.on(tuple(sample.x_true.shape))
    back = operator.adjoint(sample.b[None])
    image = operator(back)
    scale = float((image * sample.b).sum() / image.square().sum().clamp_min(1e-30))
    return Scene(name, sample.x_true, sample.b, scale * back[0], shown)


def _image(x: Tensor) -> Tensor:
    """What is drawn: of volumes the middle slice, of other numbers of channels than 1 and 3 the first one."""
    while x.dim() > 3:
        x = x[:, x.shape[1] // 2]
    return x if len(x) in (1, 3) else x[:1]


def _measure(x: Tensor, clean: Tensor, name: str) -> Quality:
    """Without SSIM where images are too small for it, or no images."""
    if clean.dim() == 3 and min(clean.shape[-2:]) >= _SMALLEST_FOR_SSIM:
        return quality(x, clean, name)
    error = float((x - clean).double().square().mean())
    return Quality(math.inf if error == 0 else -10.0 * math.log10(error), math.nan)


def _conditionings(
    problem: LowerLevelProblem, baseline: LowerLevelProblem | None, sample: Sample
) -> dict[str, Conditioning]:
    problems = {"learned": _of(problem, sample), "total variation": baseline}
    return {name: conditioning(p, sample.b[None]) for name, p in problems.items() if p is not None}


def _sweep(
    problem: LowerLevelProblem, baseline: LowerLevelProblem | None, samples: Sequence[Sample], levels: Sequence[float]
) -> NoiseSweep | None:
    """Of denoisers that are told the noise level of each sample."""
    if not levels or not isinstance(problem.operator, Identity):
        return None
    tuned, tv = samples[0].sigma, None if baseline is None else baseline.regularizer
    try:
        given = (tv, tuned) if isinstance(tv, TotalVariation) and tuned is not None else None
        return noise_sweep(problem.regularizer, given, [s.x_true for s in samples], levels)
    except LearnregError:
        return None  # levels beyond what the regularizer knows
