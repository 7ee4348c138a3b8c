"""``learnreg.certify``: judge anybody's lower-level solution and adjoint state."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from learnreg.certificates.judgement import Verdict, gradient_distance, judge
from learnreg.certificates.state import state_residual
from learnreg.errors import DataError
from learnreg.hypergradients.base import Accuracy
from learnreg.hypergradients.compute import CertificateName, check_certificate
from learnreg.hypergradients.implicit import Implicit
from learnreg.hypergradients.search import Request
from learnreg.hypergradients.sharp_search import SharpSearch
from learnreg.linear.samples import inner_samples, norm_samples, sum_samples
from learnreg.losses import UpperLoss
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.point import Point
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.result import BoundKind, Certificate, Hypergradient
from learnreg.solvers.newton_correction import correct_adjoint, extended_adjoint

__all__ = ["certify"]

_SHARE = 0.02
"""Share of the distance to the corrected gradient that its own bound may add."""

_SMALLEST = 1e-10
"""Relative accuracy of the corrected gradient beyond which no more corrections are made."""

_ADJOINT = 1e-3
"""Relative residual of the adjoint state where none is given."""


@torch.no_grad()
def certify(
    problem: LowerLevelProblem | FrozenProblem,
    b: Tensor,
    loss: UpperLoss,
    x: Tensor,
    X: Tensor | None = None,
    certificate: CertificateName = "sharp",
    *,
    max_steps: int | None = None,
) -> Certificate:
    """Bound the error of x, and of the hypergradient formed from exactly x and X, whoever computed them.

    "published" judges the point alone. "sharp" goes on from it by Newton steps to a better point (x', X'), whose
    gradient has an error bound B' there (Lemmas 1 to 4), so that any gradient g is within ‖g - G(x', X')‖ + B' of the
    exact one and x within ‖x - x'‖ + e' (Lemma 5). "auto" is the sharp one.

    Parameters
    ----------
    b: measurements (batch, *range_shape).
    x, X: lower-level solution and adjoint state, (batch, *domain_shape) each. Without X the adjoint equation at x is
        solved first. Of an x outside the constraint the nearest point inside is judged; the error bound is that of x.
    max_steps: Newton and adjoint iterations at most.

    Raises
    ------
    ShapeError, DataError, ConfigError: bad input.
    """
    check_certificate(certificate)
    frozen = problem.frozen()
    search = SharpSearch(frozen, b, loss, Implicit(), Request(1.0, 0.0, max_steps, certificate, newton_steps=1))
    instance, given = search.exact_instance, _checked(frozen, x, "x")
    x = instance.latent.extend(frozen.constraint.exactly(x.detach()).double())
    point = Point(frozen, instance, b, search.loss, x, torch.zeros_like(x))
    if X is None:
        size = sum_samples(point.loss_gradient**2).sqrt()
        point = point.at(x, correct_adjoint(point, _ADJOINT * size, max_steps).point)
    else:
        point = point.at(x, extended_adjoint(instance, x, _checked(frozen, X, "X")))
    plain = judge(point, certificate)
    final, target = plain, partial(_much_better, plain)
    if plain.certifiable and certificate != "published":
        accuracy = Accuracy(plain.state_error, plain.adjoint_residual)
        final, _ = search.refine(point, plain, accuracy, target)
    moved = norm_samples(given - instance.latent.image(plain.point.x))
    if final.hindrance:
        return _uncertified(search, plain, search.estimate(plain, target), moved)
    return _certified(search, plain, final, moved)


def _much_better(plain: Verdict, verdict: Verdict) -> float:
    """The error bound of a corrected gradient that adds little to its distance from the given one."""
    distance = gradient_distance(plain.gradient, verdict.gradient)
    return max(_SHARE * distance, _SMALLEST * verdict.norm)


def _checked(frozen: FrozenProblem, value: Tensor, name: str) -> Tensor:
    """The iterate in float64, or an error."""
    frozen.operator.check_domain(value, name)
    if not bool(torch.isfinite(value).all()):
        raise DataError(
            f"certify({name}): NaN or infinite entries.", hint="Pass the result of a solver that converged."
        )
    return value.detach().double()


def _certified(search: SharpSearch, plain: Verdict, final: Verdict, moved: Tensor) -> Certificate:
    """Lemma 5: the bounds at the final point, and the distance to it. ``moved``: that of x from the constraint."""
    at, after = plain.point, final.point
    distance = gradient_distance(plain.gradient, final.gradient)
    rounded = distance * (1.0 + 1e-12) + _rounding(plain)
    state = torch.minimum(plain.state_error, norm_samples(at.x - after.x) + final.state_error)
    adjoint = torch.minimum(plain.adjoint_error, norm_samples(at.X - after.X) + final.adjoint_error)
    intervals = (at.loss.interval(at.x, state), final.loss_interval)
    return _result(
        search,
        plain,
        final,
        state_error=state + moved,
        adjoint_error=adjoint,
        bound=min(plain.error_bound, rounded + final.error_bound) if final is not plain else plain.error_bound,
        kind="rigorous",
        interval=(max(low for low, _ in intervals), min(high for _, high in intervals)),
    )


def _uncertified(search: SharpSearch, plain: Verdict, estimated: Hypergradient, moved: Tensor) -> Certificate:
    """No bound exists: the distance to what Newton corrections lead to is an estimate."""
    instance, at = search.exact_instance, plain.point
    x = instance.latent.extend(estimated.x.double())
    X = extended_adjoint(instance, x, estimated.X.double())
    final = judge(at.at(x, X))
    bound = gradient_distance(plain.gradient, final.gradient) + estimated.error_bound
    return _result(
        search,
        plain,
        final,
        state_error=torch.minimum(plain.state_error, 1.1 * norm_samples(at.x - final.point.x)) + moved,
        adjoint_error=1.1 * norm_samples(at.X - final.point.X),
        bound=bound,
        kind="estimate" if math.isfinite(bound) else "none",
        interval=(-math.inf, math.inf),
    )


def _result(
    search: SharpSearch,
    plain: Verdict,
    final: Verdict,
    *,
    state_error: Tensor,
    adjoint_error: Tensor,
    bound: float,
    kind: BoundKind,
    interval: tuple[float, float],
) -> Certificate:
    instance, x, X = search.exact_instance, plain.point.x, plain.point.X
    pullback = instance.adjoint(instance.potential.grad(instance.apply(x)))
    weighted = inner_samples(X, state_residual(instance, x, pullback)).sum()
    scale = math.sqrt(math.prod(search.frozen.operator.domain_shape))
    return Certificate(
        error_bound=state_error / scale * (1.0 + 1e-14),
        gradient=plain.gradient,
        gradient_error_bound=bound,
        loss=plain.loss,
        loss_interval=interval,
        certified=kind == "rigorous" and math.isfinite(bound),
        bound_kind=kind,
        reason=plain.reason if kind != "rigorous" else "",
        X=instance.latent.image(X),
        adjoint_error_bound=adjoint_error,
        gradient_error_estimate=gradient_distance(plain.gradient, final.gradient),
        loss_estimate=plain.loss + float(weighted),
        corrected_gradient=final.gradient,
        corrected_error_bound=final.error_bound,
        operator_applications=instance.counter.applications,
    )


def _rounding(verdict: Verdict) -> float:
    """What the dtype of the gradients rounds off."""
    return sum(torch.finfo(g.dtype).eps * float(g.double().norm()) for g in verdict.gradient.values())
