"""Hunt for false bounds of chains of reweighted problems: random ones, at loose tolerances and with extreme constants,
against dense chains to rounding."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from truth.chain import DenseChain, chain_gradient_of, chain_weights
from truth.draw import DOUBLE, Draw
from truth.summary import Summary

import learnreg as lr
from learnreg.operators import Blur, Identity, Inpainting
from learnreg.regularizers import FieldsOfExperts, Regularizer, Reweighted, RidgeRegularizer, TotalVariation
from learnreg.result import ChainSolution

__all__ = ["hunt_chains"]


def _regularizer(draw: Draw, channels: int, modulus: float) -> Reweighted:
    """``modulus``: of data term and ridge, what a weakly convex one may take from."""
    kind, base = draw.choice("experts", "experts", "variation", "ridge", "nonconvex"), cast("Regularizer", None)
    kind = draw.choice("variation", "complex") if channels == 2 else kind
    if kind == "variation":
        joint: Any = {"channels": channels, "coupling": "joint"} if channels > 1 else {}
        base = TotalVariation(draw.log_uniform(1e-2, 1.0), draw.log_uniform(1e-3, 1.0), **joint)
    elif kind == "complex":
        own = lr.PseudoHuber(draw.log_uniform(1e-3, 3.0), draw.log_uniform(1e-2, 3.0))
        base = FieldsOfExperts(draw.integer(1, 3), 3, own, "reflect", channels=2, coupling="complex")
    elif kind == "ridge":
        adapts = draw.chance(0.5)
        base = RidgeRegularizer(
            (2, 3), 3, 9, weight=draw.log_uniform(0.1, 2.0), smoothing=0.15, noise_conditioned=adapts
        )
    elif kind == "nonconvex":
        base = RidgeRegularizer(
            (2, 4), 3, 9, "convex-nonconvex", nonconvexity=draw.uniform(0.3, 0.95) * modulus,
            boundary=cast("Any", draw.choice("zero", "circular", "reflect")),
            weight=draw.log_uniform(0.01, 2.0), smoothing=draw.log_uniform(0.03, 0.3), depth=draw.uniform(0.1, 0.95),
            noise_conditioned=draw.chance(0.5),
        )  # fmt: skip
    else:
        potential = cast("Any", draw.choice(lr.PseudoHuber, lr.LogCosh))
        own = potential(draw.log_uniform(1e-3, 3.0), draw.log_uniform(1e-2, 3.0))
        base = FieldsOfExperts(draw.integer(1, 4), 3, own, "reflect", noise_conditioned=draw.chance(0.5))
    weights = draw.choice("free", "responses") if draw.chance(0.4) else "majorising"
    steps, window = draw.choice(1, 1, 2, 3, None), (1, 1, 3)
    weights, window = ("majorising", (1,)) if kind == "complex" else (weights, window)
    weights = draw.choice("free", "responses") if kind == "nonconvex" else weights
    window = (1,) if weights != "majorising" else window
    R = Reweighted(
        base, cast("Any", weights), cast("Any", steps), scale=draw.log_uniform(1e-2, 10.0),
        window=cast("Any", draw.choice(*window)), features=2, size=3,
    ).double()  # fmt: skip
    with torch.no_grad():
        for p in R.parameters():
            p.add_(draw.log_uniform(1e-2, 0.5) * draw.normal(*p.shape))
    return R


def _problem(draw: Draw) -> lr.LowerLevelProblem:
    shape = (draw.choice(1, 1, 1, 2), draw.integer(4, 7), draw.integer(4, 7))
    kind = draw.choice("identity", "identity", "blur", "mask")
    A: lr.LinearOperator = Identity(shape)
    if kind == "blur":
        A = Blur(draw.rand(3, 3) / 5.0, shape)
    elif kind == "mask":
        A = Inpainting((draw.rand(*shape) < 0.7).double())
    ridge = 0.0 if kind == "identity" else draw.log_uniform(1e-2, 1.0)
    constraint = lr.Box(0.0, draw.uniform(0.3, 1.0)) if draw.chance(0.3) else None
    modulus = 1.0 if kind == "identity" else float(ridge)
    R, level = _regularizer(draw, shape[0], modulus), draw.log_uniform(0.02, 0.5)
    return lr.LowerLevelProblem(A, R, ridge=ridge, constraint=constraint, noise_level=level)


def _next(dense: DenseChain, R: Reweighted, x: Tensor) -> Tensor:
    dense.places = chain_weights(R, dense, x)
    return dense.solve(x)[0]


@torch.no_grad()
def hunt_chains(problems: int, generator: torch.Generator) -> Summary:
    """``problems`` random chains, each solved at a loose and at a tight tolerance."""
    summary, draw = Summary(), Draw(generator)
    for number in range(problems):
        problem = _problem(draw)
        dtype = torch.float32 if draw.chance(0.3) else DOUBLE
        shape = (2, *problem.operator.range_shape)
        b = (draw.log_uniform(0.1, 3.0) * draw.rand(*shape) + 0.1 * draw.normal(*shape)).to(dtype)
        summary.problems += 1
        for tolerance in (draw.log_uniform(1e-3, 0.3), draw.log_uniform(1e-6, 1e-3)):
            found = lr.solve(problem, b, tolerance)
            assert isinstance(found, ChainSolution)
            _compare(summary, f"{number} at {tolerance:.2g}", problem, b, found)
        summary.certified += int(found.certified)
        if cast("Reweighted", problem.regularizer).steps is not None:
            _compare_gradients(summary, str(number), problem, b, draw)
    return summary


def _compare_gradients(summary: Summary, label: str, problem: lr.LowerLevelProblem, b: Tensor, draw: Draw) -> None:
    """Of the tolerances, one is so loose that its bound is taken where the first round ends."""
    loss = lr.SquaredError(draw.rand(len(b), *problem.operator.domain_shape).to(b.dtype))
    exact = chain_gradient_of(problem, b, loss)
    size = sum(float((g * g).sum()) for g in exact.values()) ** 0.5
    summary.smooth += 1
    for kind, tolerance in (("loose", draw.log_uniform(0.1, 30.0)), ("tight", draw.log_uniform(1e-6, 0.1))):
        found = lr.hypergradient(problem, b, loss, tolerance=tolerance)
        summary.reached[kind] = summary.reached.get(kind, 0) + int(found.certified)
        if found.bound_kind != "rigorous":
            continue
        error = sum(float((found.gradient[n] - g).square().sum()) for n, g in exact.items()) ** 0.5
        slack = 1e-9 * size / min(1.0, problem.strong_convexity)
        summary.compare("hypergradient", error, found.error_bound, slack, f"{label} at {tolerance:.2g}")


def _compare(summary: Summary, label: str, problem: lr.LowerLevelProblem, b: Tensor, found: ChainSolution) -> None:
    dense, R = DenseChain(problem, b), cast("Reweighted", problem.regularizer)
    x = [iterate.double().flatten(1) for iterate in found.chain]
    step = _next(dense, R, x[-2])
    if R.steps is None:
        exact = x[-1]
        for _ in range(400 if bool(torch.isfinite(found.error_bound).any()) else 0):
            before, exact = exact, _next(dense, R, exact)
            if float((exact - before).abs().max()) < 1e-13:
                break
    else:
        dense.places = None
        exact = dense.solve()[0]
        for _ in range(R.steps):
            exact = _next(dense, R, exact)
    slack = 1e-11 * (1.0 + float(x[-1].abs().max())) / min(1.0, problem.strong_convexity)
    for what, truth, bound in (("step", step, found.step_error_bound), ("chain", exact, found.error_bound)):
        errors = (x[-1] - truth).square().mean(1).sqrt()
        for error, own in zip(errors.tolist(), bound.tolist(), strict=True):
            summary.compare(what, error, own, slack, label)
