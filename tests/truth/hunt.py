"""Hunt for false bounds: random problems, solved to rounding by dense Newton steps, against everything learnreg
certifies.

The truth knows nothing of solvers and certificates: dense matrices of the operators, potentials written out again, and
autograd of ``problem.energy``. A bound is violated when the true error exceeds it by more than the error of the truth
itself, which is measured by its own residual and by what its last Newton step changed.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from truth.analysis_l1 import truth_of_l1
from truth.dense import Dense, Truth, distance, truth_of
from truth.draw import DOUBLE, Draw, Ranges
from truth.problems import Case, draw_case
from truth.summary import Summary

import learnreg as lr
from learnreg.certificates.judgement import judge
from learnreg.certificates.loss_enclosure import enclose_loss
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.point import Point
from learnreg.solvers.newton_correction import extended_adjoint

__all__ = ["METHODS", "Summary", "draw_tolerance", "hunt", "hunt_methods", "hunt_one"]


def draw_tolerance(draw: Draw) -> float:
    return draw.log_uniform(1e-6, 30.0)


class _Guess(nn.Module):
    """A prediction that knows next to nothing."""

    def forward(self, theta: Tensor, b: Tensor) -> Tensor:
        return b * (0.5 + 0.4 * torch.sigmoid(theta.mean()))


class _Guesses(lr.Proxy):
    """Where images are of the shape of measurements."""

    def fits(self, instance: Instance) -> bool:
        forward = instance.forward
        return super().fits(instance) and forward.domain_shape == forward.range_shape


METHODS: dict[str, Callable[[], HypergradientMethod]] = {
    "piggyback": lr.Piggyback,
    "implicit": lr.Implicit,
    "implicit-newton-cg": lambda: lr.Implicit(state_solver="newton-cg"),
    "piggyback-interleaved": lambda: lr.Piggyback(mode="interleaved"),
    "implicit-minres": lambda: lr.Implicit("minres"),
    "implicit-neumann": lambda: lr.Implicit("neumann"),
    "implicit-nystrom": lambda: lr.Implicit("nystrom"),
    "one-step": lr.OneStep,
    "unrolled": lambda: lr.Unrolled(30, checkpoints=4),
    "unrolled-forward": lambda: lr.Unrolled(10, mode="forward"),
    "equilibrium-propagation": lr.EquilibriumPropagation,
    "equilibrium-propagation-one-sided": lambda: lr.EquilibriumPropagation(nudges=1),
    "equilibrium-propagation-holomorphic": lambda: lr.EquilibriumPropagation(nudges=4),
    "equilibrium-propagation-given-beta": lambda: lr.EquilibriumPropagation(1e-6),
    "closed-form": lr.ClosedForm,
    "finite-difference": lr.FiniteDifference,
    "finite-difference-given-step": lambda: lr.FiniteDifference(1e-3),
    "proxy": lambda: _Guesses(_Guess()),
}
"""Those that fit a problem take part in it."""

FEW = {"finite-difference": 4, "finite-difference-given-step": 4}
"""Learned numbers at most, of methods whose work grows with them."""


def hunt_one(case: Case, draw: Draw, summary: Summary) -> None:
    """Compare every bound on one problem with the truth."""
    problem, b, loss = case.problem, case.b, case.loss
    truth = truth_of(problem, b, loss)
    summary.problems += 1
    if not truth.usable:
        summary.unusable_truth += 1
        return
    _compare_solution(case, draw, summary, truth)
    _compare_judgement(case, draw, summary, truth)
    _compare_certify(case, draw, summary, truth)
    name = draw.choice(*_fitting(case, METHODS))
    summary.certified += _compare_method(case, draw, summary, truth, str(name), "hypergradient")
    if problem.constraint is None and not case.label.split("/")[1].startswith("Huber"):
        summary.smooth += 1
        for goal in (1e-1, 1e-3):
            result = lr.hypergradient(problem, b, loss, tolerance=goal)
            _compare_hypergradient(result, truth, summary, f"{case.label}/default/{goal:g}", "default hypergradient")
            key = f"{goal:g}"
            summary.reached[key] = summary.reached.get(key, 0) + (result.status is lr.Status.CONVERGED)


def hunt_signs(case: Case, draw: Draw, summary: Summary) -> None:
    """Compare what is said of a lower level with an l1-norm with the truth; ``reached``: of each kind of K."""
    truth = truth_of_l1(case.problem, case.b, case.loss)
    summary.problems += 1
    summary.unusable_truth += not truth.usable
    if truth.usable:
        _compare_solution(case, draw, summary, truth, "auto", "pdhg")
        summary.smooth += 1
        certified = _compare_method(case, draw, summary, truth, "closed-form", "hypergradient", ("auto", "sharp"))
        summary.certified += certified
        kind = type(case.problem.saddle_terms(DOUBLE).operator).__name__
        of_kind = f"{kind}, certified", f"{kind}, all"
        for name, count in zip(of_kind, (certified, 1), strict=True):
            summary.reached[name] = summary.reached.get(name, 0) + count


def hunt_local(case: Case, draw: Draw, summary: Summary) -> None:
    """Compare what is said of local minimisers with those that energies fall to from where it is said."""
    problem, b, loss = case.problem, case.b, case.loss
    summary.problems += 1
    summary.indefinite += _is_indefinite(problem, b)
    _compare_local_solution(case, draw, summary)
    near = lr.solve(problem, b, 1e-8).x.double().flatten(1)
    truth = truth_of(problem, b, loss, near)
    if not truth.usable:
        summary.unusable_truth += 1
        return
    _compare_judgement(case, draw, summary, truth)
    _compare_certify(case, draw, summary, truth)
    name = str(draw.choice(*_fitting(case, METHODS)))
    summary.certified += _compare_method(case, draw, summary, truth, name, "hypergradient")
    if problem.constraint is None:
        summary.smooth += 1
        for goal in (1e-1, 1e-3):
            result = lr.hypergradient(problem, b, loss, tolerance=goal)
            _compare_hypergradient(result, truth, summary, f"{case.label}/default/{goal:g}", "default hypergradient")
            key = f"{goal:g}"
            summary.reached[key] = summary.reached.get(key, 0) + (result.status is lr.Status.CONVERGED)


def _is_indefinite(problem: lr.LowerLevelProblem, b: Tensor) -> bool:
    """Whether M - K^T rho K is."""
    dense, f = Dense(problem, b), problem.saddle_terms(DOUBLE).potential
    rho = torch.as_tensor(f.concavity, dtype=DOUBLE).detach().expand(dense.range_shape).flatten()
    lowest = torch.linalg.eigvalsh(dense.M - (dense.K.T * rho) @ dense.K)
    return bool((lowest[:, 0] < 0).any())


def _compare_local_solution(case: Case, draw: Draw, summary: Summary) -> None:
    """From few steps and many, to rough accuracies and fine ones."""
    problem, b = case.problem, case.b
    tolerance, max_steps = draw.log_uniform(1e-10, 1.0), draw.choice(1, 3, 10, 50, None, None)
    solver = draw.choice("auto", "lbfgs", "newton-cg")
    found = lr.solve(problem, b, tolerance, solver=solver, max_steps=max_steps)  # type: ignore[arg-type]
    label = f"{case.label}/{solver}/{tolerance:.2g}/{max_steps}"
    if found.certified != (problem.strong_convexity > 0 and found.locally_certified):
        summary.violations.append(f"a local certificate is called global [{label}]")
    if found.bound_kind == "none" or not bool(torch.isfinite(found.error_bound).any()):
        return
    truth = truth_of(problem, b, case.loss, found.x.double().flatten(1))
    _compare_ball(found.radius, truth, found.x, summary, label)
    scale = math.sqrt(truth.x.shape[1])
    errors = (found.x.double().flatten(1) - truth.x).norm(dim=1) / scale
    for error, bound, slack in zip(errors, found.error_bound, truth.x_slack / scale, strict=True):
        if math.isfinite(bound):
            summary.compare("local solve", float(error), float(bound), float(slack), label)


def hunt_methods(case: Case, draw: Draw, summary: Summary, names: Sequence[str]) -> None:
    """Compare what these methods say on one problem with the truth."""
    truth = truth_of(case.problem, case.b, case.loss)
    summary.problems += 1
    if not truth.usable:
        summary.unusable_truth += 1
        return
    certified = [_compare_method(case, draw, summary, truth, name, name) for name in _fitting(case, names)]
    summary.certified += all(certified)


def _fitting(case: Case, names: Iterable[str]) -> list[str]:
    instance, numbers = case.problem.instance(case.b), sum(p.numel() for p in case.problem.learnable().values())
    return [name for name in names if METHODS[name]().fits(instance) and numbers <= FEW.get(name, numbers)]


def _compare_method(
    case: Case,
    draw: Draw,
    summary: Summary,
    truth: Truth,
    name: str,
    what: str,
    certificates: Sequence[str] = ("auto", "published", "sharp"),
) -> bool:
    """A hypergradient by one method, to some tolerance within some steps; whether it was certified."""
    tolerance = draw_tolerance(draw)
    max_steps = draw.choice(1, 3, 30, 300, None, None)
    method, certificate = METHODS[name](), draw.choice(*certificates)
    try:
        result = lr.hypergradient(
            case.problem, case.b, case.loss, method, tolerance, max_steps=max_steps, certificate=certificate
        )
    except lr.ConfigError:  # more parameters than the method takes
        return False
    label = f"{case.label}/{name}/{certificate}/tolerance={tolerance:.2g}/max_steps={max_steps}"
    _compare_hypergradient(result, truth, summary, label, f"{certificate} {what}")
    if (
        result.locally_certified
        and result.status is lr.Status.CONVERGED
        and result.error_bound > tolerance * result.norm
    ):
        summary.violations.append(f"converged above the tolerance [{label}]")
    return result.locally_certified


def _is_proximal(case: Case) -> bool:
    return not case.problem.instance(case.b).potential.prox_obstacle()


def _compare_certify(case: Case, draw: Draw, summary: Summary, truth: Truth) -> None:
    """``lr.certify`` at random iterates, as far from the truth as a rough solve or as a good one."""
    problem, shape = case.problem, (-1, *case.problem.operator.domain_shape)
    noise = draw.log_uniform(1e-7, 1e-1) * draw.normal(*truth.x.shape)
    x = (truth.x + noise * truth.x.norm(dim=1, keepdim=True) / math.sqrt(truth.x.shape[1])).reshape(shape)
    X = truth.X.reshape(shape) * (1.0 + draw.log_uniform(1e-6, 1e-1)) if draw.chance(0.5) else None
    result = lr.certify(problem, case.b, case.loss, x, X)
    if not result.locally_certified:
        return
    truth = truth.about(x)
    _compare_ball(result.radius, truth, x, summary, case.label)
    error = distance(result.gradient, truth.gradient)
    summary.compare("certify", error, result.gradient_error_bound, truth.gradient_slack, case.label)
    error = distance(result.corrected_gradient, truth.gradient)
    summary.compare("certify corrected", error, result.corrected_error_bound, truth.gradient_slack, case.label)
    low, high = result.loss_interval
    slack = 1e-13 * (1.0 + abs(truth.loss))
    summary.compare("certify loss", abs(truth.loss - 0.5 * (low + high)), 0.5 * (high - low), slack, case.label)
    scale = math.sqrt(truth.x.shape[1])
    errors = (x.flatten(1) - truth.x).norm(dim=1) / scale
    for error, bound, slack in zip(errors, result.error_bound, truth.x_slack / scale, strict=True):
        summary.compare("certify x", float(error), float(bound), float(slack), case.label)
    errors = (result.X.flatten(1) - truth.X).norm(dim=1)
    for error, bound, slack in zip(errors, result.adjoint_error_bound, truth.X_slack, strict=True):
        summary.compare("certify X", float(error), float(bound), float(slack), case.label)


def _compare_ball(radius: Tensor, truth: Truth, x: Tensor, summary: Summary, label: str) -> None:
    """The minimiser that the energy falls to from x is in the ball, where there is one."""
    for way, size, slack in zip((x.double().flatten(1) - truth.x).norm(dim=1), radius, truth.x_slack, strict=True):
        if 0 < size < math.inf:
            summary.compare("in the ball", float(way), float(size), float(slack), label)


def _compare_solution(case: Case, draw: Draw, summary: Summary, truth: Truth, *solvers: str) -> None:
    problem, b = case.problem, case.b
    solver = draw.choice(*(solvers or ("pdhg" if _is_proximal(case) else "auto", "lbfgs", "newton-cg")))
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
    instance, loss, X = problem.instance(case.b.double()), case.loss, X.reshape(shape)
    if instance.latent.channels:
        x, loss = instance.latent.extend(x), instance.latent.loss(loss)
        X = extended_adjoint(instance, x, X)
        features = x[:, 1:] * (1.0 + draw.log_uniform(1e-12, 1e-2) * draw.normal(*x[:, 1:].shape)).clamp_min(0.0)
        x = torch.cat([x[:, :1], features], 1) if draw.chance(0.5) else x
    point = Point(problem.frozen(), instance, case.b, loss, x, X)
    enclosed = enclose_loss(point)
    if enclosed.certified and math.isfinite(enclosed.upper):
        middle, half = 0.5 * (enclosed.lower + enclosed.upper), 0.5 * (enclosed.upper - enclosed.lower)
        slope = case.loss.gradient(truth.x.reshape(shape)).flatten(1).norm(dim=1)
        slack = 1e-13 * (1.0 + abs(truth.loss)) + float((slope * truth.x_slack).sum())
        summary.compare("loss by the adjoint state", abs(truth.loss - middle), half, slack, case.label)
    channels = case.problem.operator.domain_shape[0]  # of the image, before those of latent variables
    truth = truth.about(instance.latent.image(x))
    for kind in ("published", "frobenius", "sharp"):
        judged = judge(point, kind)
        _compare_ball(judged.radius, truth, instance.latent.image(x), summary, case.label)
        if not judged.reason:
            error = distance(judged.gradient, truth.gradient)
            summary.compare(f"{kind} certificate", error, judged.error_bound, truth.gradient_slack, case.label)
        for sample in range(x.shape[0]):
            error = float((x[sample, :channels].flatten() - truth.x[sample]).norm())
            bound = float(judged.state_error[sample])
            summary.compare(f"{kind} certificate x", error, bound, float(truth.x_slack[sample]), case.label)
            error = float((X[sample, :channels].flatten() - truth.X[sample]).norm())
            bound = float(judged.adjoint_error[sample])
            summary.compare(f"{kind} certificate X", error, bound, float(truth.X_slack[sample]), case.label)


def _compare_hypergradient(result: lr.Hypergradient, truth: Truth, summary: Summary, label: str, name: str) -> None:
    if not result.locally_certified:
        return
    truth = truth.about(result.x)
    _compare_ball(result.radius, truth, result.x, summary, label)
    error = distance(result.gradient, truth.gradient)
    summary.compare(name, error, result.error_bound, truth.gradient_slack, label)
    if result.corrected_gradient is not result.gradient:
        error = distance(result.corrected_gradient, truth.gradient)
        summary.compare(f"{name}, corrected", error, result.corrected_error_bound, truth.gradient_slack, label)
    low, high = result.loss_interval
    rounding = 2.3e-16 * (abs(low) + abs(high)) if math.isfinite(high - low) else 0.0  # of the middle, below
    slack = 1e-13 * (1.0 + abs(truth.loss)) + rounding
    summary.compare("loss interval", abs(truth.loss - 0.5 * (low + high)), 0.5 * (high - low), slack, label)
    for sample in range(truth.x.shape[0]):
        error = float((result.x[sample].double().flatten() - truth.x[sample]).norm())
        bound = float(result.state_error_bound[sample])
        summary.compare("state", error, bound, float(truth.x_slack[sample]), label)
        error = float((result.X[sample].double().flatten() - truth.X[sample]).norm())
        bound = float(result.adjoint_error_bound[sample])
        summary.compare("adjoint state", error, bound, float(truth.X_slack[sample]), label)


def hunt(
    problems: int,
    generator: torch.Generator,
    ranges: Ranges | None = None,
    progress: bool = False,
    methods: Sequence[str] = (),
) -> Summary:
    """Run the hunt on so many random problems; with ``methods``, by name, only after what all of these say of each."""
    summary, start = Summary(), time.perf_counter()
    for index in range(problems):
        case_generator = torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=generator)))
        before = len(summary.violations)
        seed = case_generator.initial_seed()
        draw = Draw(case_generator, ranges)
        case = draw_case(draw)
        case.label += f"/case={seed}"
        if draw.ranges.local:
            hunt_local(case, draw, summary)
        elif not case.problem.saddle_terms(DOUBLE).potential.differentiable:
            hunt_signs(case, draw, summary)
        elif methods:
            hunt_methods(case, draw, summary, methods)
        else:
            hunt_one(case, draw, summary)
        for violation in summary.violations[before:]:
            print(violation, file=sys.stderr)
        if progress and (index + 1) % 100 == 0:
            rate = (time.perf_counter() - start) / (index + 1)
            print(f"{index + 1} problems, {len(summary.violations)} violations, {rate:.2f} s each", file=sys.stderr)
    summary.seconds = time.perf_counter() - start
    return summary
