"""``learnreg adapt``: a learned regularizer in another task, by the scalars that balance it with the data.

The minimiser for the regularizer factor · scale² R(x / scale) is the one for images scale times as bright: two numbers,
tuned on a few pairs, or the factor alone without a ground truth, so that the residual is as large as the noise. The
scale is searched (a noise-conditioned regularizer is told a noise level instead); the factor descends by steps whose
decrease is certified.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learnreg.commands.common import Scenario, announce, comparison_figures
from learnreg.commands.options import TrainingConfig
from learnreg.commands.terminal import check_folder
from learnreg.errors import ConfigError
from learnreg.losses import SquaredError
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.models.model import Model, save_model
from learnreg.regularizers import Regularizer, Scaled
from learnreg.solvers.solve import solve
from learnreg.training.baseline import WEIGHT_OF_NOISE, tune_total_variation
from learnreg.training.start_tuning import least_loss
from learnreg.upper_level.adaptive_descent import AdaptiveDescent
from learnreg.upper_level.batch_objective import BatchObjective

__all__ = ["CRITERIA", "Adapted", "adapt"]

CRITERIA = ("pairs", "discrepancy")

_STEP, _MOST = math.log(2.0), 40
_SCALE_STEP, _MOST_SCALES = math.log(1.6), 6
_HALVINGS, _MOST_STEPS = 30, 10_000
_FIRST_ITERATIONS, _ITERATIONS = 100, 20
"""Of a lower-level solve of the search at most, from nothing and from the last solution: factors far from the best one
make problems that no solver is done with soon."""

_FLAT = 1e-3
"""Of the logarithm of a factor: closer it need not be known."""


@dataclass(frozen=True)
class Adapted:
    """factor and scale (None where the regularizer knows neither scales nor noise levels), noise_level: those of a
    conditioned one. loss: at the end, the upper end of its certified interval, without certified steps an *estimate*;
    nan without a ground truth. certified steps: of the descent in the factor."""

    factor: float
    scale: float | None
    noise_level: float | None
    loss: float
    certified_steps: int
    problem: LowerLevelProblem


def adapt(
    model: Model,
    scenario: Scenario,
    out: Path,
    pairs: int = 3,
    criterion: str = "pairs",
    noise: float | None = None,
    steps: int = 8,
) -> dict[str, Any]:
    """Adapt a model to the measurements of a task, write ``out``/model.safetensors, and compare it with total variation
    on the held-out images. Returns the figures of the summary.

    Parameters
    ----------
    pairs: of training samples that the scalars are tuned on.
    criterion: "pairs", the squared error of these; "discrepancy", their measurements alone, with the residual's size.
    noise: its standard deviation in the units of the measurement, for the discrepancy; None: found from the pairs'
        clean measurements, which the simulation knows.
    steps: certified ones in the factor at most, at the end of "pairs".

    Raises
    ------
    ConfigError: a criterion that there is not, no pairs, a model whose images are of another kind.
    """
    if criterion not in CRITERIA:
        raise ConfigError(f"--criterion {criterion}: expected one of {', '.join(CRITERIA)}.")
    if noise is not None and criterion != "discrepancy":
        raise ConfigError(f"--noise {noise:g}: it is for --criterion discrepancy; leave one of them out.")
    if noise is not None and not 0.0 < noise < math.inf:
        raise ConfigError(f"--noise {noise:g}: expected a positive finite number.")
    if not 1 <= pairs <= len(scenario.pairs):
        raise ConfigError(f"--pairs {pairs}: expected from 1 to the {len(scenario.pairs)} training samples there are.")
    if not 0 <= steps <= _MOST_STEPS:
        raise ConfigError(f"--steps {steps}: expected 0 for none, or how many at most, up to {_MOST_STEPS:,}.")
    check_folder(out)
    regularizer = _for_images(model.regularizer, scenario.config)
    b, x_true = (torch.stack(column) for column in zip(*(scenario.pairs[i] for i in range(pairs)), strict=True))
    announce(f"tuning the balance on {pairs} samples")
    tuning = _Tuning(scenario, b, x_true, _rough(scenario, x_true), _guess(model, scenario))
    if criterion == "pairs":
        found = tuning.by_pairs(regularizer, model.conditioned, model.usual_noise_level, steps)
    else:
        found = tuning.by_discrepancy(regularizer, noise)
    path = out / "model.safetensors"
    save_model(path, found.problem, {**scenario.described, "adapted": {"pairs": pairs, "criterion": criterion}})
    announce("tuning the weight of total variation, for comparison")
    baseline = scenario.baseline()
    tv_weight = tune_total_variation(baseline, scenario.pairs, pairs, scenario.tv_tolerance)
    announce("reconstructing the held-out images")
    comparison = scenario.compare(found.problem, baseline)
    own = {field.name: getattr(found, field.name) for field in dataclasses.fields(found) if field.name != "problem"}
    return {**comparison_figures(comparison, scenario.input_key), **own, "tv_weight": tv_weight, "model": str(path)}


def _rough(scenario: Scenario, x_true: Tensor) -> float:
    """How accurately the search solves."""
    return scenario.tv_tolerance * max(float(x_true.double().square().mean().sqrt()), 1e-30)


def _guess(model: Model, scenario: Scenario) -> float:
    """The logarithm of a factor to start at: where total variation needs so much more or less weight than in denoising,
    so may a model of denoising."""
    if not (model.denoises and model.usual_noise_level):
        return 0.0
    return math.log(scenario.tv_weight / (WEIGHT_OF_NOISE * model.usual_noise_level))


def _for_images(regularizer: Regularizer, config: TrainingConfig) -> Regularizer:
    """The regularizer on images of the task: one of grey images on complex ones sees their modulus.

    Raises
    ------
    ConfigError: the family has no such form.
    """
    wanted = config.image_kind
    channels = wanted.get("channels", 1)
    if regularizer.image_channels == channels:
        return regularizer
    if regularizer.image_channels != 1:
        raise ConfigError(
            f"this model is for images of {regularizer.image_channels} channels, the task's have {channels}; take one "
            "of grey images, or one of that many channels."
        )
    kind = {"coupling": wanted.get("coupling", "separate"), "dimensions": 2, regularizer.channels_option: channels}
    refusal = f"{type(regularizer).__name__} has no form for {channels} channels; train one for this task."
    try:
        again = type(regularizer).from_config({**regularizer.config(), **kind})
        again.load_state_dict(regularizer.state_dict())
    except (TypeError, RuntimeError) as error:
        raise ConfigError(refusal) from error
    if again.image_channels != channels:
        raise ConfigError(refusal)
    return again


@dataclass
class _Tuning:
    """Searches on one batch; solves start from the last solution. guess: the logarithm of the factor to begin with."""

    scenario: Scenario
    b: Tensor
    x_true: Tensor
    tolerance: float
    guess: float = 0.0
    start: Tensor | None = None

    def by_pairs(self, regularizer: Regularizer, conditioned: bool, noise_level: float | None, steps: int) -> Adapted:
        """The least squared error over scale and factor, then certified steps in the factor."""
        forms: dict[float, tuple[float, float]] = {}  # logarithm of the scale -> (factor, loss)
        level = noise_level or 1.0

        def problem(log_scale: float, factor: float) -> tuple[LowerLevelProblem, Scaled]:
            if not conditioned:
                scaled = Scaled(regularizer.stretched(math.exp(log_scale)), factor)
                return self.scenario.problem(scaled), scaled
            scaled = Scaled(regularizer, factor)
            found = self.scenario.problem(scaled)
            found.noise_level = level * math.exp(log_scale)
            return found, scaled

        def of_scale(log_scale: float) -> float:
            factor = forms[min(forms, key=lambda s: abs(s - log_scale))][0] if forms else math.exp(self.guess)
            try:
                forms[log_scale] = self._best_factor(*problem(log_scale, factor))
            except ConfigError:
                if not (conditioned and forms):
                    raise
                return math.inf  # a noise level that the regularizer does not know
            return forms[log_scale][1]

        has_scale = conditioned or regularizer.stretched(1.0) is not regularizer
        best = least_loss(of_scale, 0.0, _SCALE_STEP, _MOST_SCALES) if has_scale else 0.0
        if best not in forms:
            of_scale(best)
        final, scaled = problem(best, forms[best][0])
        loss, made = self._descend(final, steps) if steps else (forms[best][1], 0)
        return Adapted(
            float(scaled.factor.detach()),
            math.exp(best) if has_scale and not conditioned else None,
            level * math.exp(best) if conditioned else None,
            loss,
            made,
            final,
        )

    def by_discrepancy(self, regularizer: Regularizer, noise: float | None) -> Adapted:
        """The factor whose residual is as large as the noise (Morozov, 1966): it grows with the factor, and halving
        intervals finds it.

        Raises
        ------
        ConfigError: no factor from 1e-12 to 1e12 makes the residual that large.
        """
        size = noise * math.sqrt(self.b[0].numel()) if noise is not None else self._noise_norm()
        scaled = Scaled(regularizer)
        problem = self.scenario.problem(scaled)

        @cache  # each is a solve
        @torch.no_grad()
        def excess(log_factor: float) -> float:
            scaled.log_factor.fill_(log_factor)
            x = self._solution(problem)
            residual = (problem.operator(x) - self.b).double().flatten(1).norm(dim=1).square().mean().sqrt()
            return float(residual) - size

        low, high = self.guess, self.guess
        while excess(low) > 0.0 and low > -_MOST * _STEP:
            low -= 4.0 * _STEP
        while excess(high) < 0.0 and high < _MOST * _STEP:
            high += 4.0 * _STEP
        if not excess(low) <= 0.0 <= excess(high):
            raise ConfigError(
                f"no factor makes residuals as large as the noise, {size / math.sqrt(self.b[0].numel()):.3g} for each "
                "number: check --noise."
            )
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if excess(middle) < 0.0 else (low, middle)
            if high - low < _FLAT:
                break
        scaled.log_factor.data.fill_(0.5 * (low + high))
        return Adapted(float(scaled.factor.detach()), None, None, math.nan, 0, problem)

    @torch.no_grad()
    def _noise_norm(self) -> float:
        clean = self.scenario.baseline().operator(self.x_true)
        return float((clean - self.b).double().flatten(1).norm(dim=1).square().mean().sqrt())

    @torch.no_grad()
    def _best_factor(self, problem: LowerLevelProblem, scaled: Scaled) -> tuple[float, float]:
        """The factor with the least squared error, and that error."""

        @cache  # each is a solve
        def loss(log_factor: float) -> float:
            scaled.log_factor.fill_(log_factor)
            return float(SquaredError(self.x_true).value(self._solution(problem)))

        best = least_loss(loss, float(scaled.log_factor), _STEP, _MOST)
        return math.exp(best), loss(best)

    def _solution(self, problem: LowerLevelProblem) -> Tensor:
        """Rough: an *estimate*, unless the tolerance is reached."""
        most = _FIRST_ITERATIONS if self.start is None else _ITERATIONS
        self.start = solve(problem, self.b, self.tolerance, start=self.start, max_steps=most).x
        return self.start

    def _descend(self, problem: LowerLevelProblem, most: int) -> tuple[float, int]:
        """A few certified steps in the factor; the upper end of the loss after them, and how many decreased it for
        certain."""
        objective, descent = BatchObjective(problem, self.b, SquaredError(self.x_true)), AdaptiveDescent(audit_every=1)
        steps = 0
        while steps < most and descent.step(objective).accepted:
            steps += 1
        return (objective.latest or objective.evaluate(descent.accuracy)).upper, steps
