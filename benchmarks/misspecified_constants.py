"""Constants that a user declares, and declares wrong: what is refused, what holds all the same, and what is wrong.

    python benchmarks/misspecified_constants.py --record

Dense truth in float64; points with errors along the eigenvectors that bounds meet.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from harness import Table, arguments, finish
from torch import Tensor, nn
from truth.by_energy import EnergyTruth, hessians, truth_by_energy
from truth.dense import distance, norm

import learnreg as lr
from learnreg.convolutions.gradient import Gradient
from learnreg.operators import Identity
from learnreg.potentials.proximal import SmoothedElementwise
from learnreg.regularizers import AnalysisOperator, Regularizer, TotalVariation

SIDE, LARGE, SEEDS = 8, 34, 3
FACTORS = (0.1, 0.3, 0.5, 0.9, 1.1, 2.0, 3.0, 10.0)
TOLERANCES, AWAY = (0.5, 1e-2), (1e-1, 1e-3)
DOUBLE = torch.float64


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


# ---- classes of a user, whose constants are known -------------------------------------------------------------------


class Differences(lr.LinearOperator):
    """Differences of neighbours in both directions, around the edges, each direction times a parameter."""

    def __init__(self, side: int, name: str = "", factor: float = 1.0) -> None:
        super().__init__((1, side, side), (2, side, side))
        self.scale = nn.Parameter(torch.ones(2, 1, 1, dtype=DOUBLE))
        self.factors = {name: factor}

    def forward(self, x: Tensor) -> Tensor:
        return self.scale.to(x) * torch.cat([x.roll(-1, -1) - x, x.roll(-1, -2) - x], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        p = self.scale.to(y) * y
        return (p[:, :1].roll(1, -1) - p[:, :1]) + (p[:, 1:].roll(1, -2) - p[:, 1:])

    def norm_bound(self) -> float:
        return self.factors.get("norm_bound", 1.0) * 2.0 * float(self.scale.detach().norm())

    def row_norms(self, grouped: bool) -> float:
        size = float(self.scale.detach().norm() if grouped else self.scale.detach().abs().max())
        return self.factors.get("row_norms", 1.0) * math.sqrt(2.0) * size

    def parameter_lipschitz(self) -> float:
        return self.factors.get("parameter_lipschitz", 1.0) * 2.0


class CircularBlur(lr.LinearOperator):
    """A symmetric blur around the edges, of eigenvalues between 1 and 1/5, the latter of the checkerboard."""

    def __init__(self, side: int, factor: float = 1.0) -> None:
        super().__init__((1, side, side), (1, side, side))
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return 0.6 * x + 0.1 * (x.roll(1, -1) + x.roll(-1, -1) + x.roll(1, -2) + x.roll(-1, -2))

    adjoint = forward

    def norm_bound(self) -> float:
        return 1.0

    def gram_lower_bound(self) -> float:
        return self.factor * 0.2**2


class Rotated(Regularizer):
    """w sum of sqrt(t² + v²) - v + c/2 t², over the responses t of an orthogonal matrix; log w is learned."""

    weight, smoothing = 0.1, 0.1

    def __init__(self, side: int, curvature: float, name: str = "", factor: float = 1.0) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.tensor(math.log(self.weight), dtype=DOUBLE))
        self.register_buffer("matrix", torch.linalg.qr(normal(side**2, side**2, seed=99))[0])
        self.curvature = curvature
        w, v = self.weight, self.smoothing
        steepest = w * max(1.0 / v + curvature, abs(curvature))
        true = {
            "modulus": w * curvature,
            "gradient_lipschitz": steepest,
            "hessian_lipschitz": w * 1.5 / 1.25**2.5 / v**2,
            "cross_bound": w * (side + 20.0 * abs(curvature)),  # of images up to ‖x‖ = 20 where c is not 0
            "cross_lipschitz": steepest,
        }
        for constant, value in true.items():
            setattr(self, constant, value * (factor if constant == name else 1.0))

    def value(self, x: Tensor) -> Tensor:
        t, v = x.flatten(1) @ self.matrix.T, self.smoothing
        return self.log_weight.exp() * ((t * t + v * v).sqrt() - v + 0.5 * self.curvature * t * t).sum(1)


class Fair(SmoothedElementwise):
    """l (|t| - v log(1 + |t|/v)) (Fair, 1974), one of its bounds times a factor."""

    factors: dict[str, float] = {}  # noqa: RUF012

    def density(self, t: Tensor) -> Tensor:
        u = t.abs() / self.smoothing
        return self.weight * self.smoothing * (u - torch.log1p(u))

    def grad(self, t: Tensor) -> Tensor:
        return self.weight * t / (self.smoothing + t.abs())

    def second(self, t: Tensor) -> Tensor:
        return self.weight * self.smoothing / (self.smoothing + t.abs()) ** 2

    @property
    def curvature_limit(self) -> Any:
        return self.factors.get("curvature_limit", 1.0) * super().curvature_limit

    def third_bound(self, t: Tensor, radius: Any) -> Tensor:
        return torch.as_tensor(self.factors.get("third_bound", 1.0) * 2.0 * self.weight / self.smoothing**2).expand_as(
            t
        )

    def curvature_bounds(self, t: Tensor, radius: Any) -> tuple[Tensor, Tensor]:
        low, high = super().curvature_bounds(t, radius)
        return low, self.factors.get("curvature_bounds", 1.0) * high


# ---- problems with one constant wrong --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """A problem and a loss by the factor of one constant. above: whether it is a lower bound, too large when wrong."""

    problem: Callable[[float], lr.LowerLevelProblem]
    loss: Callable[[float, Tensor], lr.UpperLoss] = lambda factor, x_true: lr.SquaredError(x_true)
    above: bool = False
    side: int = SIDE


def denoising(R: Regularizer, side: int) -> lr.LowerLevelProblem:
    return lr.LowerLevelProblem(Identity((1, side, side)), R.double())


def of_operator(name: str, side: int) -> Setting:
    def make(factor: float) -> lr.LowerLevelProblem:
        return denoising(AnalysisOperator(Differences(side, name, factor), lr.PseudoHuber(0.05, 0.1)), side)

    return Setting(make, side=side)


def of_blur(side: int) -> Setting:
    def make(factor: float) -> lr.LowerLevelProblem:
        return lr.LowerLevelProblem(CircularBlur(side, factor), TotalVariation(1e-3, 0.05).double())

    return Setting(make, above=True, side=side)


def of_regularizer(name: str, curvature: float = 0.0) -> Setting:
    """Of a modulus below 0, a larger size is the safe side."""
    return Setting(lambda factor: denoising(Rotated(SIDE, curvature, name, factor), SIDE), above=curvature > 0)


def of_potential(name: str) -> Setting:
    def make(factor: float) -> lr.LowerLevelProblem:
        kind = type("Fair", (Fair,), {"factors": {name: factor}})
        return denoising(AnalysisOperator(Gradient((1, SIDE, SIDE)), kind(0.05, 0.1)), SIDE)

    return Setting(make)


def differences_of(factor: float, x_true: Tensor) -> lr.UpperLoss:
    """½ ‖D (x - x_true)‖², whose curvature is largest for checkerboards."""
    D = Differences(SIDE)
    return lr.UpperLoss(lambda x: 0.5 * D(x - x_true).square().sum(), gradient_lipschitz=8.0 * factor)


def charbonnier(factor: float, x_true: Tensor) -> lr.UpperLoss:
    """Its curvature is largest where x is x_true."""
    return lr.UpperLoss(lambda x: ((x - x_true) ** 2 + 0.01**2).sqrt().sum(), gradient_lipschitz=100.0 * factor)


def of_loss(loss: Callable[[float, Tensor], lr.UpperLoss]) -> Setting:
    return Setting(lambda factor: denoising(TotalVariation(0.1, 0.05), SIDE), loss)


SETTINGS: dict[str, tuple[Setting, ...]] = {
    "operator: norm_bound, row_norms": (
        of_operator("norm_bound", SIDE),
        of_operator("norm_bound", LARGE),
        of_operator("row_norms", SIDE),
    ),
    "operator: parameter_lipschitz": (of_operator("parameter_lipschitz", SIDE),),
    "operator: gram_lower_bound": (of_blur(SIDE), of_blur(LARGE)),
    "R.value: modulus > 0": (of_regularizer("modulus", 5.0),),
    "R.value: modulus < 0": (of_regularizer("modulus", -5.0),),
    "R.value: gradient_lipschitz": (of_regularizer("gradient_lipschitz"),),
    "R.value: hessian_lipschitz": (of_regularizer("hessian_lipschitz"),),
    "R.value: cross_bound, cross_lipschitz": (of_regularizer("cross_bound"), of_regularizer("cross_lipschitz")),
    "potential: curvature_limit, curvature_bounds, third_bound": tuple(
        of_potential(name) for name in ("curvature_limit", "curvature_bounds", "third_bound")
    ),
    "loss: gradient_lipschitz": (of_loss(differences_of), of_loss(charbonnier)),
}


# ---- what becomes of it ----------------------------------------------------------------------------------------------


@dataclass
class Outcomes:
    """Calls that were refused, or whose bound was withdrawn; certified bounds that hold, and that do not, with the
    largest error over one."""

    refused: int = 0
    withdrawn: int = 0
    held: int = 0
    wrong: int = 0
    worst: float = 0.0

    def compare(self, error: float, bound: float, rounding: float) -> None:
        if error <= bound * (1.0 + 1e-6) + rounding:
            self.held += 1
        else:
            self.wrong += 1
            self.worst = max(self.worst, error / max(bound, 1e-300))

    def __str__(self) -> str:
        calls, bounds = self.refused + self.withdrawn, self.held + self.wrong
        if not bounds:
            return "refused" if not self.withdrawn else "withdrawn"
        said = f"{self.wrong} of {bounds} wrong, up to {self.worst:.2g}x" if self.wrong else "right"
        return f"{said}; {calls} calls refused" if calls else said


@dataclass(frozen=True)
class Scene:
    """One draw of measurements, its exact solution, and the eigenvectors of the energy's Hessian there."""

    b: Tensor
    x_true: Tensor
    truth: EnergyTruth
    vectors: Tensor

    @classmethod
    def draw(cls, setting: Setting, seed: int) -> Scene:
        problem, i = setting.problem(1.0), torch.arange(setting.side, dtype=DOUBLE)
        edge = (i[:, None] * (0.5 + 0.3 * math.cos(seed)) + i > setting.side / 1.5).double()
        x_true = 0.2 + 0.6 * edge[None, None]
        b = problem.operator(x_true).detach() + 0.1 * normal(*x_true.shape, seed=seed)
        truth = truth_by_energy(problem, b, setting.loss(1.0, x_true), lr.solve(problem, b, 1e-3).x)
        return cls(b, x_true, truth, torch.linalg.eigh(hessians(problem, truth.x, b)).eigenvectors)

    def directions(self, seed: int) -> Iterator[Tensor]:
        """Unit images: the eigenvectors of the least and the largest curvature, a pixel, noise."""
        noise, pixel = normal(*self.b.shape, seed=seed + 50), torch.zeros_like(self.b)
        pixel.view(-1)[11 + seed] = 1.0
        for e in (self.vectors[:, :, 0], self.vectors[:, :, -1], pixel, noise):
            yield e.reshape(self.b.shape) / e.norm()


def try_factor(setting: Setting, scene: Scene, factor: float, seed: int, found: Outcomes) -> None:
    """Hypergradients, and certificates of points with errors, at one draw."""
    problem, loss, truth = setting.problem(factor), setting.loss(factor, scene.x_true), scene.truth
    rounding = 1e-11 * norm(truth.gradient)

    def certified(call: Callable[[], Any]) -> Any:
        try:
            result = call()
        except lr.LearnregError:
            found.refused += 1
            return None
        found.withdrawn += not result.certified
        return result if result.certified else None

    for tolerance in TOLERANCES:
        hg = certified(lambda: lr.hypergradient(problem, scene.b, loss, tolerance=tolerance))  # noqa: B023
        if hg is not None:
            found.compare(distance(hg.gradient, truth.gradient), hg.error_bound, rounding)
    for away in AWAY:
        for e in scene.directions(seed):
            x, X = truth.x + away * e, truth.X + 0.1 * away * truth.X.norm() * e
            judged = certified(lambda: lr.certify(problem, scene.b, loss, x, X, "published"))  # noqa: B023
            if judged is not None:
                found.compare(away / setting.side, float(judged.error_bound), 1e-12)
                found.compare(distance(judged.gradient, truth.gradient), judged.gradient_error_bound, rounding)


def main() -> None:
    quick = {"LARGE": 12, "SEEDS": 1, "FACTORS": (0.1, 1.1), "AWAY": (1e-2,), "TOLERANCES": (0.5,)}
    options = arguments(__doc__ or "", quick=quick, only={"default": "", "help": "constants whose names contain this"})
    table = Table(
        name="misspecified_constants",
        order=52,
        title="Declared constants that are wrong",
        command="python benchmarks/misspecified_constants.py --record",
        text=f"""Classes of a user's own on {SIDE}² pixels (norms and eigenvalues also on {LARGE}²), each with one
declared constant times a factor of the true one (known in closed form). {SEEDS} draws: hypergradients at tolerances
{" and ".join(f"{t:g}" for t in TOLERANCES)}, and `lr.certify(certificate="published")` of points with errors of
{", ".join(f"{a:g}" for a in AWAY)} along the eigenvectors of least and largest curvature, one pixel and noise; every
certified bound (of x and of gradients) is held against the dense truth. *refused*: an error names the constant (or, of
a modulus far below 0, says that the energy may have several minima). *right*: all certified bounds hold. Bold: the
factor is on the unsafe side. The smallest eigenvalue on {LARGE}² belongs to a checkerboard, which is
among the images tried; of ill-conditioned operators of that size where it does not, larger ones pass
([operators.md](operators.md)).""",
    )
    wrong = 0
    for name, settings in SETTINGS.items():
        if options.only not in name:
            continue
        print(f"{time.process_time():6.1f} s: {name}", file=sys.stderr, flush=True)
        cases = [(setting, seed, Scene.draw(setting, seed)) for setting in settings for seed in range(SEEDS)]
        row: dict[str, Any] = {"constant": name}
        for factor in (1.0, *FACTORS):
            found = Outcomes()
            for setting, seed, scene in cases:
                try_factor(setting, scene, factor, seed, found)
            unsafe = factor != 1.0 and (factor > 1.0) == settings[0].above
            row[f"{factor:g}"] = f"**{found}**" if unsafe else str(found)
            wrong += found.wrong
        table.rows.append(row)
    table.tracked["certified bounds that do not hold"] = float(wrong)
    finish(table, options)


if __name__ == "__main__":
    main()
