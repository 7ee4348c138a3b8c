"""Hunt for false bounds: random problems, solved to rounding by dense Newton steps, against everything learnreg
certifies.

    python benchmarks/bound_hunt.py --problems 2000 --seed 1 --json

The truth knows nothing of solvers and certificates: dense matrices of the operators, potentials written out again, and
autograd of ``problem.energy``. A bound is violated when the true error exceeds it by more than the error of the truth
itself, which is measured by its own residual and by what its last Newton step changed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.certificates.judgement import judge
from learnreg.filterbank import FilterBank
from learnreg.linop import LinearOperator
from learnreg.norms import dense_matrix
from learnreg.operators import Blur, Identity, Inpainting
from learnreg.potentials import IsotropicPseudoHuber
from learnreg.regularizers import AnalysisOperator, FieldsOfExperts, Regularizer, TotalVariation
from learnreg.regularizers.total_variation import Gradient

DOUBLE = torch.float64


@dataclass(frozen=True)
class Ranges:
    """What problems are drawn from."""

    smoothing: tuple[float, float] = (1e-3, 1.0)
    scale: tuple[float, float] = (1e-2, 2.0)
    ridge: tuple[float, float] = (1e-2, 1.0)
    offset: float = 0.0
    constrained: float = 0.1
    dtype: torch.dtype = DOUBLE


RANGES = {
    "ordinary": Ranges(),
    "extreme": Ranges((1e-4, 1e2), (1e-4, 1e2), (1e-4, 1e2), offset=100.0, constrained=0.2),
    "constrained": Ranges((1e-2, 1.0), (1e-2, 1.0), (0.1, 1.0), constrained=1.0),
    "float32": Ranges(dtype=torch.float32),
}


class Draw:
    """Random choices from one generator."""

    def __init__(self, generator: torch.Generator, ranges: Ranges | None = None) -> None:
        self.generator, self.ranges = generator, ranges or Ranges()

    def scale(self) -> float:
        return self.log_uniform(*self.ranges.scale)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator, dtype=DOUBLE))

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def chance(self, probability: float) -> bool:
        return self.uniform(0.0, 1.0) < probability

    def choice(self, *options: object) -> object:
        return options[self.integer(0, len(options) - 1)]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=DOUBLE)

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=DOUBLE)


# ------------------------------------------------------------------------------------------------------------- problems


@dataclass
class Case:
    """One random problem and the call to test on it."""

    problem: lr.LowerLevelProblem
    b: Tensor
    loss: lr.UpperLoss
    coupled: bool
    smoothing: float
    label: str


def potential(draw: Draw, smoothing: float, weight: float) -> lr.PseudoHuber | lr.LogCosh | lr.Huber:
    kind = draw.choice(lr.PseudoHuber, lr.PseudoHuber, lr.LogCosh, lr.LogCosh, lr.Huber)
    return kind(smoothing, weight)  # type: ignore[operator]


def fields_of_experts(draw: Draw, shape: tuple[int, int, int], smoothing: float) -> Regularizer:
    count, size = draw.integer(1, 5), draw.integer(2, min(3, *shape[1:]))
    boundary = draw.choice("valid", "zero", "circular", "reflect")
    scale = draw.scale()
    if draw.chance(0.4):
        shared = potential(draw, smoothing, draw.scale())
        result = FieldsOfExperts(count, size, shared, boundary, generator=draw.generator)
        result = result.double()
        with torch.no_grad():
            result.filters.add_(0.3 * draw.normal(count, size, size)).mul_(scale)
        return result
    filters = scale * draw.normal(count, size, size)
    weights = torch.stack([torch.tensor(draw.scale(), dtype=DOUBLE) for _ in range(count)])
    smoothings = smoothing * (1.0 + draw.rand(count))
    return FieldsOfExperts.from_arrays(filters, weights, smoothings, boundary, potential(draw, 1.0, 1.0))


def total_variation(draw: Draw, shape: tuple[int, int, int], smoothing: float) -> Regularizer:
    return TotalVariation(draw.scale(), smoothing).double()


def analysis_operator(draw: Draw, shape: tuple[int, int, int], smoothing: float) -> Regularizer:
    weight = draw.scale()
    kind = draw.integer(0, 2)
    if kind == 0:
        size = draw.integer(2, min(3, *shape[1:]))
        filters = nn.Parameter(draw.scale() * draw.normal(draw.integer(1, 3), size, size))
        bank = FilterBank(filters, shape, draw.choice("valid", "zero", "circular", "reflect"))
        return AnalysisOperator(bank, potential(draw, smoothing, weight)).double()
    operator: LinearOperator = Gradient(shape)
    if kind == 1:
        return AnalysisOperator(operator, IsotropicPseudoHuber(smoothing, weight)).double()
    return AnalysisOperator(draw.uniform(0.1, 2.0) * operator, potential(draw, smoothing, weight)).double()


REGULARIZERS: dict[str, Callable[[Draw, tuple[int, int, int], float], Regularizer]] = {
    "FieldsOfExperts": fields_of_experts,
    "TotalVariation": total_variation,
    "AnalysisOperator": analysis_operator,
}


def forward_operator(draw: Draw, shape: tuple[int, int, int]) -> LinearOperator:
    kind = draw.integer(0, 4)
    if kind <= 1:
        return Identity(shape)
    if kind == 2:
        return Inpainting((draw.rand(*shape) > 0.3).to(DOUBLE))
    size = draw.integer(1, 3)
    boundary = draw.choice("zero", "circular", "reflect")
    kernel = draw.rand(size, size) if draw.chance(0.5) else draw.normal(size, size)
    kernel = kernel / kernel.abs().sum()
    return Blur(nn.Parameter(kernel) if draw.chance(0.4) else kernel, shape, boundary)


def upper_loss(draw: Draw, x_true: Tensor) -> tuple[lr.UpperLoss, bool]:
    kind = draw.integer(0, 3)
    if kind <= 1:
        return lr.SquaredError(x_true), False
    scale = draw.log_uniform(1e-2, 1.0)
    if kind == 2:  # per sample; the second derivative of each term is at most 1/scale
        distance = lambda x: (((x - x_true) ** 2 + scale**2).sqrt() - scale).flatten(1).sum(1)  # noqa: E731
        return lr.UpperLoss(distance, 1.0 / scale), False
    # one number for the whole batch that couples its samples: ½‖mean over the batch‖², gradient constant 1/batch
    return lr.UpperLoss(lambda x: 0.5 * ((x - x_true).mean(0) ** 2).sum(), 1.0 / x_true.shape[0]), True


def draw_case(draw: Draw) -> Case:
    """A random problem of at most 9 x 9 pixels."""
    ranges = draw.ranges
    shape = (1, draw.integer(3, 9), draw.integer(3, 9))
    batch = draw.integer(1, 3)
    smoothing = draw.log_uniform(*ranges.smoothing)
    name = str(draw.choice(*REGULARIZERS, "FieldsOfExperts"))
    regularizer = REGULARIZERS[name](draw, shape, smoothing)
    operator = forward_operator(draw, shape)
    data_term: lr.LeastSquares = lr.LeastSquares()
    if draw.chance(0.25):
        weights = draw.rand(*operator.range_shape) * (draw.rand(*operator.range_shape) > 0.2)
        if draw.chance(0.3):
            weights = torch.tensor(draw.uniform(0.2, 2.0), dtype=DOUBLE)
        data_term = lr.WeightedLeastSquares(nn.Parameter(weights) if draw.chance(0.5) else weights)
    ridge: float | nn.Parameter = 0.0
    modulus = data_term.weight_range()[0] * operator.gram_lower_bound()
    if modulus < 1e-3 or draw.chance(0.3):
        ridge = draw.log_uniform(*ranges.ridge)
        if draw.chance(0.3):
            ridge = nn.Parameter(torch.tensor(ridge, dtype=DOUBLE))
    constraint = None
    if draw.chance(ranges.constrained):
        constraint = lr.Nonnegative() if draw.chance(0.5) else lr.Box(draw.uniform(-0.2, 0.3), draw.uniform(0.6, 1.2))
    problem = lr.LowerLevelProblem(operator, regularizer, ridge=ridge, data_term=data_term, constraint=constraint)
    x_true = draw.rand(batch, *shape)
    if draw.chance(0.5):
        x_true = x_true + ranges.offset
    with torch.no_grad():
        b = operator(x_true)
        b = b + draw.log_uniform(1e-2, 0.3) * draw.normal(*b.shape)
    problem, x_true, b = problem.to(ranges.dtype), x_true.to(ranges.dtype), b.to(ranges.dtype)
    loss, coupled = upper_loss(draw, x_true)
    kind = type(problem.saddle_terms(DOUBLE).potential).__name__
    label = (
        f"{name}/{kind}/{type(operator).__name__}/{type(data_term).__name__}/{batch}x{shape[1]}x{shape[2]}"
        f"/smoothing={smoothing:.2g}/mu={problem.strong_convexity:.2g}"
        f"{'' if constraint is None else '/' + type(constraint).__name__}"
    )
    return Case(problem, b, loss, coupled, smoothing, label)


# ---------------------------------------------------------------------------------------------------------------- truth


@dataclass
class Truth:
    """The solution to rounding, (batch, n) each, with the error that its own residuals allow."""

    x: Tensor
    X: Tensor
    gradient: dict[str, Tensor]
    loss: float
    x_slack: Tensor
    X_slack: Tensor
    gradient_slack: float
    usable: bool


def _column(value: float | Tensor, t: Tensor) -> Tensor:
    value = torch.as_tensor(value, dtype=DOUBLE)
    return value.expand(t.shape[1:]) if value.dim() else value


def derivatives(kind: str, t: Tensor, weight: Tensor, smoothing: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Density, f' and f'' written out again; for groups f'' is (batch, c, c, h, w), else the shape of t."""
    l, v = weight, smoothing
    if kind == "PseudoHuber":
        s = torch.sqrt(t**2 + v**2)
        return l * (s - v), l * t / s, l * v**2 / s**3
    if kind == "LogCosh":
        u = (t / v).abs()
        return (
            l * v * (u + torch.log1p(torch.exp(-2 * u)) - math.log(2)),
            l * torch.tanh(t / v),
            l / v / torch.cosh(u.clamp(max=300)) ** 2,
        )
    if kind == "Huber":
        inside = t.abs() <= v
        return (
            torch.where(inside, l * t**2 / (2 * v), l * (t.abs() - v / 2)),
            torch.where(inside, l * t / v, l * t.sign()),
            torch.where(inside, l / v + 0 * t, 0 * t),
        )
    if kind == "IsotropicPseudoHuber":
        s = torch.sqrt((t**2).sum(1, keepdim=True) + v**2)
        identity = torch.eye(t.shape[1], dtype=t.dtype)[None, :, :, None, None]
        outer = t[:, :, None] * t[:, None, :]
        return l * (s - v), l * t / s, (l / s)[:, None] * identity - (l / s**3)[:, None] * outer
    raise NotImplementedError(kind)


class Dense:
    """The lower-level problem as dense matrices."""

    def __init__(self, problem: lr.LowerLevelProblem, b: Tensor) -> None:
        self.problem, self.b = problem, b.detach().double()
        terms = problem.saddle_terms(DOUBLE)
        self.kind = type(terms.potential).__name__
        with torch.no_grad():
            self.K = dense_matrix(terms.operator, terms.operator.domain_shape)
            A = dense_matrix(problem.operator, problem.operator.domain_shape)
            weights = problem.data_term.weights_for(self.b).expand(problem.operator.range_shape).reshape(-1)
        self.range_shape = terms.operator.range_shape
        self.weight = torch.as_tensor(terms.potential.weight, dtype=DOUBLE).detach()
        self.smoothing = torch.as_tensor(terms.potential.smoothing, dtype=DOUBLE).detach()
        self.M = A.T @ (weights[:, None] * A) + problem.ridge_value * torch.eye(A.shape[1], dtype=DOUBLE)
        self.q = (self.b.flatten(1) * weights) @ A
        self.lower, self.upper = -math.inf, math.inf
        if problem.constraint is not None:
            self.lower, self.upper = float(problem.constraint.lower), float(problem.constraint.upper)

    def value(self, x: Tensor) -> Tensor:
        t = (x @ self.K.T).reshape(-1, *self.range_shape)
        density = derivatives(self.kind, t, self.weight, self.smoothing)[0]
        return 0.5 * ((x @ self.M) * x).sum(1) - (self.q * x).sum(1) + density.flatten(1).sum(1)

    def gradient(self, x: Tensor) -> Tensor:
        t = (x @ self.K.T).reshape(-1, *self.range_shape)
        return x @ self.M - self.q + derivatives(self.kind, t, self.weight, self.smoothing)[1].flatten(1) @ self.K

    def hessian(self, x: Tensor) -> Tensor:
        t = (x @ self.K.T).reshape(-1, *self.range_shape)
        second = derivatives(self.kind, t, self.weight, self.smoothing)[2]
        if second.dim() == t.dim():
            curvature = second.expand_as(t).flatten(1)
            return self.M + torch.einsum("mi,bm,mj->bij", self.K, curvature, self.K)
        groups = self.K.reshape(t.shape[1], -1, self.K.shape[1])
        return self.M + torch.einsum("cpi,bcdp,dpj->bij", groups, second.flatten(3), groups)

    def residual(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The reduced gradient and the mask of free pixels."""
        g = self.gradient(x)
        free = ~(((x <= self.lower) & (g > 0)) | ((x >= self.upper) & (g < 0)))
        return torch.where(free, g, 0.0), free

    def step(self, x: Tensor, rhs: Tensor, free: Tensor) -> Tensor:
        H = self.hessian(x)
        both = free[:, :, None] & free[:, None, :]
        H = torch.where(both, H, torch.eye(H.shape[1], dtype=DOUBLE))
        return torch.linalg.solve(H, torch.where(free, rhs, 0.0)[:, :, None])[:, :, 0]

    def solve(self) -> tuple[Tensor, Tensor]:
        """Projected, damped Newton to rounding; returns the last two iterates."""
        x = torch.linalg.solve(self.M + self.K.T @ self.K, self.q.T).T.clamp(self.lower, self.upper)
        best, since = torch.full((x.shape[0],), math.inf, dtype=DOUBLE), 0
        previous, best_x = x, x
        for _ in range(400):
            r, free = self.residual(x)
            size = r.norm(dim=1)
            if bool((size < 0.5 * best).any()):
                since = 0
            else:
                since += 1
            improved = size < best
            previous = torch.where(improved[:, None], best_x, previous)
            best_x, best = torch.where(improved[:, None], x, best_x), torch.minimum(size, best)
            if (since >= 6 and bool((best < 1e-10 * (1 + self.q.norm(dim=1))).all())) or since > 60:
                break
            d = self.step(x, r, free)
            x = self._search(x, d, r)
        for _ in range(3):  # the line search compares energies, which tell less than gradients near the end
            r, free = self.residual(best_x)
            x = (best_x - self.step(best_x, r, free)).clamp(self.lower, self.upper)
            better = self.residual(x)[0].norm(dim=1) < r.norm(dim=1)
            previous = torch.where(better[:, None], best_x, previous)
            best_x = torch.where(better[:, None], x, best_x)
        return best_x, previous

    def _search(self, x: Tensor, d: Tensor, r: Tensor) -> Tensor:
        """Armijo backtracking per sample; full steps where the energy no longer tells."""
        start, slope = self.value(x), (d * r).sum(1)
        alpha = torch.ones_like(start)
        noise = 1e-14 * (start.abs() + (self.q * x).sum(1).abs())
        for _ in range(30):
            trial = (x - alpha[:, None] * d).clamp(self.lower, self.upper)
            bad = self.value(trial) > start - 1e-4 * alpha * slope + noise
            if not bool(bad.any()):
                break
            alpha = torch.where(bad, 0.5 * alpha, alpha)
        return (x - alpha[:, None] * d).clamp(self.lower, self.upper)

    def adjoint(self, x: Tensor, loss: lr.UpperLoss) -> Tensor:
        slope = loss.gradient(x.reshape(-1, *self.problem.operator.domain_shape)).flatten(1)
        _, free = self.residual(x)
        free = free & (x > self.lower) & (x < self.upper)
        return self.step(x, -slope, free)


def gradient_by_autograd(problem: lr.LowerLevelProblem, b: Tensor, x: Tensor, X: Tensor) -> dict[str, Tensor]:
    """∂_theta <∇_x E(x; theta), X> from ``problem.energy`` alone (its unconstrained part)."""
    parameters = problem.learnable()
    shape = (-1, *problem.operator.domain_shape)
    with torch.enable_grad():
        point = x.reshape(shape).detach().requires_grad_()
        constraint, problem.constraint = problem.constraint, None
        try:
            energy = problem.energy(point, b).sum()
        finally:
            problem.constraint = constraint
        (slope,) = torch.autograd.grad(energy, point, create_graph=True)
        scalar = (slope * X.reshape(shape)).sum()
        grads = torch.autograd.grad(scalar, list(parameters.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), grads, strict=True)}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((a[n].double() - b[n].double()).square().sum()) for n in b))


def norm(a: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in a.values()))


@torch.no_grad()
def truth_of(problem: lr.LowerLevelProblem, b: Tensor, loss: lr.UpperLoss) -> Truth:
    """Solution, adjoint state, hypergradient and loss to rounding, with slacks."""
    dense, mu = Dense(problem, b), problem.strong_convexity
    b = b.double()
    x, previous = dense.solve()
    shape = (-1, *problem.operator.domain_shape)
    own = dense.residual(x)[0].norm(dim=1)
    # The same residual from problem.energy: a truth that belongs to another energy is useless.
    constraint, problem.constraint = problem.constraint, None
    with torch.enable_grad():
        point = x.reshape(shape).detach().requires_grad_()
        (slope,) = torch.autograd.grad(problem.energy(point, b).sum(), point)
    problem.constraint = constraint
    free = dense.residual(x)[1]
    residual = torch.maximum(own, torch.where(free, slope.flatten(1), 0.0).norm(dim=1))
    rounding = 2.2e-16 * (dense.q.norm(dim=1) + (x @ dense.M).norm(dim=1))
    x_slack = 2.0 * (residual + rounding) / mu
    X, X_previous = dense.adjoint(x, loss), dense.adjoint(previous, loss)
    gradient = gradient_by_autograd(problem, b, x, X)
    change = distance(gradient_by_autograd(problem, b, previous, X_previous), gradient)
    X_slack = 4.0 * (X - X_previous).norm(dim=1) + 1e-13 * X.norm(dim=1)
    # autograd rounds the truth's gradient to the dtype of the parameters
    eps = 1e-13 if all(p.dtype == DOUBLE for p in problem.parameters()) else 3e-7
    usable = bool((residual <= 1e-9 * (1.0 + dense.q.norm(dim=1))).all())
    value = float(loss.value(x.reshape(shape)))
    return Truth(x, X, gradient, value, x_slack, X_slack, 4.0 * change + eps * norm(gradient), usable)


# ----------------------------------------------------------------------------------------------------------------- hunt


@dataclass
class Summary:
    """Counts over all problems; effectivity is bound over true error where the latter exceeds the truth's own error."""

    problems: int = 0
    unusable_truth: int = 0
    comparisons: int = 0
    certified: int = 0
    expected: int = 0
    expected_certified: int = 0
    seconds: float = 0.0
    effectivities: dict[str, list[float]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def compare(self, what: str, error: float, bound: float, slack: float, label: str) -> None:
        self.comparisons += 1
        if error > bound + slack or math.isnan(error) or math.isnan(bound):
            self.violations.append(f"{what}: error {error:.6g} > bound {bound:.6g} + slack {slack:.2g} [{label}]")
        if error > 3.0 * slack and math.isfinite(bound) and error > 0:
            self.effectivities.setdefault(what, []).append(bound / error)

    def report(self) -> dict[str, object]:
        worst = {}
        for what, values in sorted(self.effectivities.items()):
            ordered = torch.tensor(sorted(values), dtype=DOUBLE)
            worst[what] = {
                "smallest": float(ordered[0]),
                "median": float(ordered.median()),
                "largest": float(ordered[-1]),
            }
        return {
            "problems": self.problems,
            "comparisons": self.comparisons,
            "violations": len(self.violations),
            "certified_share": self.certified / max(self.problems, 1),
            "certified_share_where_expected": self.expected_certified / max(self.expected, 1),
            "expected": self.expected,
            "unusable_truth": self.unusable_truth,
            "effectivity": worst,
            "seconds": round(self.seconds, 1),
            "examples": self.violations[:10],
        }


def draw_tolerance(draw: Draw) -> float:
    return draw.log_uniform(1e-6, 30.0)


METHODS: tuple[Callable[[], object], ...] = (
    lr.Piggyback,
    lambda: lr.Piggyback(mode="interleaved"),
    lr.Implicit,
    lambda: lr.Implicit(state_solver="newton-cg"),
)


def hunt_one(case: Case, draw: Draw, summary: Summary) -> None:
    """Compare every bound on one problem with the truth."""
    problem, b, loss, label = case.problem, case.b, case.loss, case.label
    truth = truth_of(problem, b, loss)
    summary.problems += 1
    if not truth.usable:
        summary.unusable_truth += 1
        return
    _compare_solution(case, draw, summary, truth)
    _compare_judgement(case, draw, summary, truth)
    tolerance = draw_tolerance(draw)
    max_steps = draw.choice(1, 3, 30, 300, None, None)
    method = draw.choice(*METHODS)() if problem.constraint is None else draw.choice(*METHODS[:2])()
    result = lr.hypergradient(problem, b, loss, method, tolerance, max_steps=max_steps)
    label = f"{label}/{method!r}/tolerance={tolerance:.2g}/max_steps={max_steps}"
    _compare_hypergradient(result, truth, summary, label, "hypergradient")
    if result.certified and result.status is lr.Status.CONVERGED and result.error_bound > tolerance * result.norm:
        summary.violations.append(f"converged above the tolerance [{label}]")
    summary.certified += result.certified
    if case.smoothing >= 0.05 and problem.constraint is None and "Huber/" not in label.replace("PseudoHuber/", ""):
        summary.expected += 1
        summary.expected_certified += lr.hypergradient(problem, b, loss, tolerance=1.0).status is lr.Status.CONVERGED


def _compare_solution(case: Case, draw: Draw, summary: Summary, truth: Truth) -> None:
    problem, b = case.problem, case.b
    solver = "pdhg" if problem.constraint is not None else draw.choice("pdhg", "lbfgs", "newton-cg")
    tolerance, max_steps = draw.log_uniform(1e-10, 1.0), draw.choice(1, 2, 5, 50, None)
    solution = lr.solve(problem, b, tolerance, solver=solver, max_steps=max_steps)
    scale = math.sqrt(truth.x.shape[1])
    errors = (solution.x.double().flatten(1) - truth.x).norm(dim=1) / scale
    for error, bound, slack in zip(errors, solution.error_bound, truth.x_slack / scale, strict=True):
        name = f"solve {solver}"
        summary.compare(name, float(error), float(bound), float(slack), f"{case.label}/{tolerance:.2g}/{max_steps}")


def _compare_judgement(case: Case, draw: Draw, summary: Summary, truth: Truth) -> None:
    """Certificates trust no solver: iterates at random distances from the truth."""
    problem, shape = case.problem, (-1, *case.problem.operator.domain_shape)
    x = truth.x + draw.log_uniform(1e-8, 0.3) * draw.normal(*truth.x.shape) * (truth.x.norm(dim=1).mean() / 9)
    X = truth.X + draw.log_uniform(1e-8, 1.0) * draw.normal(*truth.X.shape) * (truth.X.norm(dim=1).mean() / 9)
    if draw.chance(0.5):  # what solvers return: nothing off the free pixels
        X = torch.where(truth.X == 0, 0.0, X)
    x = x.reshape(shape) if problem.constraint is None else problem.constraint.prox(x.reshape(shape))
    judged = judge(problem, problem.instance(case.b.double()), case.b, case.loss, x, X.reshape(shape))
    if not judged.reason:
        error = distance(judged.gradient, truth.gradient)
        summary.compare("certificate", error, judged.error_bound, truth.gradient_slack, case.label)
    for sample in range(x.shape[0]):
        error = float((x[sample].flatten() - truth.x[sample]).norm())
        bound = float(judged.state_error[sample])
        summary.compare("certificate x", error, bound, float(truth.x_slack[sample]), case.label)
        error = float((X[sample] - truth.X[sample]).norm())
        bound = float(judged.adjoint_error[sample])
        summary.compare("certificate X", error, bound, float(truth.X_slack[sample]), case.label)


def _compare_hypergradient(result: lr.Hypergradient, truth: Truth, summary: Summary, label: str, name: str) -> None:
    if not result.certified:
        return
    error = distance(result.gradient, truth.gradient)
    summary.compare(name, error, result.error_bound, truth.gradient_slack, label)
    low, high = result.loss_interval
    slack = 1e-13 * (1.0 + abs(truth.loss))
    summary.compare("loss interval", abs(truth.loss - 0.5 * (low + high)), 0.5 * (high - low), slack, label)
    for sample in range(truth.x.shape[0]):
        error = float((result.x[sample].double().flatten() - truth.x[sample]).norm())
        bound = float(result.state_error_bound[sample])
        summary.compare("state", error, bound, float(truth.x_slack[sample]), label)
        error = float((result.X[sample].double().flatten() - truth.X[sample]).norm())
        bound = float(result.adjoint_error_bound[sample])
        summary.compare("adjoint state", error, bound, float(truth.X_slack[sample]), label)


def hunt(problems: int, generator: torch.Generator, ranges: Ranges | None = None, progress: bool = False) -> Summary:
    """Run the hunt on so many random problems."""
    summary, start = Summary(), time.perf_counter()
    for index in range(problems):
        case_generator = torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=generator)))
        before = len(summary.violations)
        seed = case_generator.initial_seed()
        draw = Draw(case_generator, ranges)
        case = draw_case(draw)
        case.label += f"/case={seed}"
        hunt_one(case, draw, summary)
        for violation in summary.violations[before:]:
            print(violation, file=sys.stderr)
        if progress and (index + 1) % 100 == 0:
            rate = (time.perf_counter() - start) / (index + 1)
            print(f"{index + 1} problems, {len(summary.violations)} violations, {rate:.2f} s each", file=sys.stderr)
    summary.seconds = time.perf_counter() - start
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranges", choices=RANGES, default="ordinary")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line of stdout")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    summary = hunt(arguments.problems, torch.Generator().manual_seed(arguments.seed), RANGES[arguments.ranges], True)
    report = summary.report()
    print(json.dumps(report) if arguments.json else json.dumps(report, indent=2))
    return 1 if summary.violations else 0


if __name__ == "__main__":
    sys.exit(main())
