"""Training runs that differ in the accuracy of the lower level only: tolerances, audits, warm starts, or a fixed number
of steps; with the true training loss along the way. Used by training_tolerances.py."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import learnreg as lr
from learnreg.datasets import BSDS500, DenoisingPatches, natural_images
from learnreg.errors import LearnregError
from learnreg.hypergradients.base import Goal, HypergradientMethod, Outcome
from learnreg.hypergradients.implicit import Implicit
from learnreg.losses import SquaredError
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.point import Point
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.operators import Identity
from learnreg.potentials.pseudo_huber import PseudoHuber
from learnreg.regularizers import FieldsOfExperts
from learnreg.training.clock import Clock
from learnreg.training.optimizers import Adam
from learnreg.training.options import TrainingOptions
from learnreg.training.samples import Reader
from learnreg.training.schedule import step_factor
from learnreg.training.session import Session
from learnreg.training.sources import MapStyle
from learnreg.training.tolerances import Audit, Tolerances
from learnreg.training.warm_starts import WarmStarts
from learnreg.training.workers import Workers

__all__ = ["Curve", "FixedSteps", "Scale", "Setting", "fixed", "fixed_steps", "train", "training_items"]

SIGMA = 25 / 255
SEED = 0
STEP_SIZE = 5e-2
TARGET = 0.1
"""Relative error of the hypergradient that the audits hold, the default of ``learnreg.train``."""
IMAGE_SIZE = 0.45
"""Root-mean-square grey value of a typical image: a relative tolerance r of the state is r times this."""
TRUE_TOLERANCE = 2e-4
FALL = 3.0
"""A run whose true PSNR is that many decibels below its best is stopped."""


@dataclass(frozen=True)
class Scale:
    """Size of the experiment. seconds: of CPU, at most, that one run may train."""

    filters: int = 24
    patch: int = 64
    patches: int = 32
    batch: int = 16
    updates: int = 80
    every: int = 8
    seconds: float = 240.0


@dataclass(frozen=True)
class Setting:
    """How a run solves its lower level."""

    name: str
    tolerances: Tolerances = field(default_factory=Tolerances)
    audits: bool = False
    warm: bool = True
    method: HypergradientMethod = field(default_factory=Implicit)


@dataclass
class Curve:
    """What a run did: true loss and PSNR, and the work so far, at some updates; condition-number bound there."""

    setting: Setting
    updates: list[int] = field(default_factory=list)
    applications: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    condition: list[float] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)
    eigenvalue: float = math.nan
    failure: str = ""

    def work_until(self, target: float, work: list[int] | list[float]) -> float:
        """The work when the true loss first falls to the target, interpolated between evaluations; inf if never."""
        for k in range(1, len(self.loss)):
            if self.loss[k] <= target:
                share = (self.loss[k - 1] - target) / (self.loss[k - 1] - self.loss[k])
                return work[k - 1] + min(max(share, 0.0), 1.0) * (work[k] - work[k - 1])
        return math.inf


class UpdatesClock(Clock):
    """Stands outside updates, and ends no run."""

    def __init__(self) -> None:
        super().__init__()
        self.done, self.cpu = 0, 0.0
        self._spent, self._since = 0.0, None

    def timed(self, update: Callable[[], Any]) -> None:
        """One update with the clock running."""
        self._since, began = time.monotonic(), time.process_time()
        update()
        self._spent, self._since = self.elapsed, None
        self.cpu += time.process_time() - began
        self.done += 1

    @property
    def elapsed(self) -> float:
        return self._spent + (0.0 if self._since is None else time.monotonic() - self._since)


class BenchmarkSession(Session):
    """A training session that runs for a number of updates, stops its clock outside them, and may leave out audits and
    warm starts."""

    clock: UpdatesClock

    def __init__(self, setting: Setting, problem: LowerLevelProblem, items: list[Any], scale: Scale) -> None:
        self.setting, self.scale = setting, scale
        self.curve_audits: list[Audit] = []
        workers = Workers(1)
        super().__init__(
            problem,
            SquaredError,
            setting.method,
            TARGET,
            source=MapStyle(items, Reader(problem.operator), workers, scale.batch, SEED),
            clock=UpdatesClock(),
            workers=workers,
            warm=WarmStarts(**({} if setting.warm else {"limit": 0})),
        )
        self.tolerances = setting.tolerances

    def _audit_if_due(self) -> Audit | None:
        found = super()._audit_if_due() if self.setting.audits else None
        if found is not None:
            self.curve_audits.append(found)
        return found


class FixedSteps(HypergradientMethod):
    """A number of steps of Nesterov's accelerated gradient method for the state, and as many for the adjoint equation,
    whatever accuracy they reach."""

    name = "fixed-steps"

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def run(self, start: Point, goal: Goal) -> Outcome:
        instance = start.instance
        condition = condition_bound(instance)
        x = accelerated(instance.full_gradient, start.x, condition, self.steps)
        equation = AdjointEquation.at(instance, x, instance.apply(x), start.loss.gradient(x))
        X = accelerated(lambda p: equation.hessian(p) - equation.rhs, start.X, condition, self.steps)
        return Outcome(x, X, state_steps=self.steps, adjoint_steps=self.steps)


def accelerated(gradient: Callable[[Tensor], Tensor], x: Tensor, lipschitz: float, steps: int) -> Tensor:
    """Nesterov's method with constant momentum for strong convexity 1; one gradient per step."""
    momentum = (math.sqrt(lipschitz) - 1.0) / (math.sqrt(lipschitz) + 1.0)
    ahead = x
    for _ in range(steps):
        following = ahead - gradient(ahead) / lipschitz
        ahead, x = following + momentum * (following - x), following
    return x


def condition_bound(instance: Instance) -> float:
    """1 + max_c (weight / smoothing) ‖W‖², a bound of the condition number of the Hessian for denoising; ‖W‖ from the
    transfer function of the filter bank."""
    spectrum = torch.fft.rfft2(instance.analysis.filters.detach().double(), s=(128, 128)).abs().square().sum(0)
    return 1.0 + float(torch.as_tensor(instance.potential.curvature_limit).max() * spectrum.max())


# ---- one run ---------------------------------------------------------------------------------------------------------


def new_problem(scale: Scale) -> LowerLevelProblem:
    regularizer = FieldsOfExperts(
        scale.filters,
        5,
        PseudoHuber(5e-3, 0.3),
        minimum_smoothing=1e-4,
        generator=torch.Generator().manual_seed(SEED),
    )
    return LowerLevelProblem(Identity((1, scale.patch, scale.patch)), regularizer)


def train(setting: Setting, items: list[Any], scale: Scale) -> Curve:
    """Train for the given number of updates, evaluating the true loss now and then."""
    session = BenchmarkSession(setting, new_problem(scale), items, scale)
    upper, curve, x = (
        Adam(session, TrainingOptions(step_size=STEP_SIZE)),
        Curve(setting, audits=session.curve_audits),
        None,
    )
    try:
        for update in range(scale.updates + 1):
            if update % scale.every == 0 or update == scale.updates:
                x = evaluate(session, items, curve, x)
            curve.failure = reason_to_stop(session, curve)
            if curve.failure:
                break
            if update < scale.updates:
                session.clock.timed(partial(upper.update, step_factor(update, scale.updates)))
    except LearnregError as error:
        curve.failure = f"stopped after {session.clock.done} updates: {error}"
    finally:
        session.close()
    curve.eigenvalue = largest_eigenvalue(session.problem, items[:4], x)
    print(
        f"{setting.name:32s} loss {curve.loss[-1]:.4f} PSNR {curve.psnr[-1]:.3f} condition {curve.condition[-1]:.0f} "
        f"applications {session.applications} CPU seconds {session.clock.cpu:.1f} audits {len(curve.audits)} "
        f"{curve.failure}",
        flush=True,
    )
    return curve


def reason_to_stop(session: BenchmarkSession, curve: Curve) -> str:
    """Why a run is not worth going on; empty while it is."""
    if session.clock.cpu > session.scale.seconds:
        return f"stopped after {session.clock.done} updates and {session.clock.cpu:.0f} CPU seconds"
    if curve.psnr[-1] < max(curve.psnr) - FALL:
        fall = max(curve.psnr) - curve.psnr[-1]
        return f"stopped after {session.clock.done} updates: the true PSNR fell by {fall:.1f} dB"
    return ""


def evaluate(session: BenchmarkSession, items: list[Any], curve: Curve, x: Tensor | None) -> Tensor:
    """Append the true loss and the work so far; returns the lower-level solutions."""
    b, x_true = (torch.stack([item[k] for item in items]) for k in range(2))
    solution = lr.solve(session.problem, b, tolerance=TRUE_TOLERANCE, start=x)
    difference = (solution.x - x_true).double().square()
    curve.updates.append(session.clock.done)
    curve.applications.append(session.applications)
    curve.seconds.append(session.clock.cpu)
    curve.loss.append(float(0.5 * difference.flatten(1).sum(1).mean()))
    curve.psnr.append(-10.0 * math.log10(float(difference.mean())))
    curve.condition.append(condition_bound(session.problem.instance(b[:1])))
    return solution.x


@torch.no_grad()
def largest_eigenvalue(problem: LowerLevelProblem, items: list[Any], x: Tensor, steps: int = 40) -> float:
    """Largest eigenvalue of the Hessian at the solutions of some items, estimated by power iteration: the condition
    number, as the smallest one is at least 1."""
    instance, x = problem.instance(torch.stack([b for b, _ in items])), x[: len(items)]
    equation = AdjointEquation.at(instance, x, instance.apply(x), torch.zeros_like(x))
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        image = equation.hessian(v / v.flatten(1).norm(dim=1)[:, None, None, None])
        v = image
    return float(v.flatten(1).norm(dim=1).max())


def fixed(relative: float, warm: bool = True) -> Setting:
    """The same relative tolerance for state and adjoint."""
    name = f"fixed {relative:.0e}" + ("" if warm else ", cold starts")
    return Setting(name, Tolerances(relative * IMAGE_SIZE, relative), warm=warm)


def fixed_steps(count: int, warm: bool) -> Setting:
    """A number of steps of accelerated gradient."""
    name = f"{count} gradient steps" + ("" if warm else ", cold starts")
    return Setting(name, warm=warm, method=FixedSteps(count))


def training_items(data: str | None, scale: Scale) -> tuple[list[Any], str]:
    """The fixed training set, and what it was drawn from."""
    images = BSDS500(data, ("train",)).images() if data else natural_images("train")
    patches = DenoisingPatches(images, SIGMA, scale.patch, scale.patches, SEED)
    return [patches[i] for i in range(scale.patches)], "BSDS500 train" if data else "natural images"
