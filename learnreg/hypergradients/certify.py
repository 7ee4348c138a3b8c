"""``learnreg.certify``: judge anybody's lower-level solution and adjoint state."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from learnreg.certificates.judgement import PointCertificate, gradient_distance
from learnreg.certificates.obstacle import Obstacle
from learnreg.certificates.state import state_residual
from learnreg.errors import ConfigError, DataError
from learnreg.hypergradients.compute import CertificateName, check_certificate
from learnreg.hypergradients.given import Given, adds_little, judge_given, with_adjoint
from learnreg.hypergradients.implicit import Implicit
from learnreg.hypergradients.noise_levels import certificate_over_levels
from learnreg.hypergradients.search import Request
from learnreg.hypergradients.sharp_search import SharpSearch
from learnreg.linear.arguments import check_batch
from learnreg.linear.grad_mode import outside_inference
from learnreg.linear.samples import inner_samples, norm_samples
from learnreg.losses import UpperLoss, check_loss
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.point import Point
from learnreg.lower_level.problem import LowerLevelProblem, freeze
from learnreg.result import BoundKind, Certificate, holds_globally
from learnreg.solvers.newton_correction import extended_adjoint
from learnreg.solvers.solve import check_max_steps

__all__ = ["certify"]


@outside_inference
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
    problem, loss: as in :func:`learnreg.hypergradient`.
    certificate: "sharp", "published" or "auto".
    b: measurements (batch, *range_shape).
    x, X: lower-level solution and adjoint state, (batch, *domain_shape) each. Without X the adjoint equation at x is
        solved first. Of an x outside the constraint the nearest point inside is judged; the error bound is that of x.
    max_steps: Newton and adjoint iterations at most.

    Raises
    ------
    ShapeError, DataError, ConfigError: bad input.
    """
    if check_certificate(certificate) == "none":
        raise ConfigError("certify(certificate='none'): expected 'sharp' or 'published'; it gives certificates alone.")
    check_max_steps(max_steps)
    frozen = freeze(problem)
    frozen.operator.check_range(b, "b")
    _check(frozen, x, b.shape[0], "x")
    if X is not None:
        _check(frozen, X, b.shape[0], "X")

    def judge(frozen: FrozenProblem, b: Tensor, loss: UpperLoss, x: Tensor, X: Tensor | None) -> Certificate:
        return _judge(frozen, b, loss, x, X, certificate, max_steps)

    parts = frozen.parts(b)
    if len(parts) == 1:
        return judge(parts[0][1], b, loss, x, X)
    return certificate_over_levels(parts, b, check_loss(loss), x, X, judge)


def _judge(
    frozen: FrozenProblem,
    b: Tensor,
    loss: UpperLoss,
    x: Tensor,
    X: Tensor | None,
    certificate: CertificateName,
    max_steps: int | None,
) -> Certificate:
    """Of samples of one noise level."""
    rungs: tuple[PointCertificate, ...] = ("published" if certificate == "published" else "sharp",)
    search = SharpSearch(frozen, b, loss, Implicit(), Request(1.0, 0.0, max_steps, rungs, newton_steps=1))
    instance, given = search.exact_instance, x.detach().double()
    x = instance.latent.extend(frozen.constraint.exactly(x.detach()).double())
    search.loss.examine(x)
    point = Point(frozen, instance, b, search.loss, x, torch.zeros_like(x))
    if X is None:
        point = with_adjoint(point, max_steps)
    else:
        X = extended_adjoint(instance, x, X.detach().double())
        point = point.at(x, X)
    plain = search.judge(point)
    target = partial(adds_little, plain.gradient)
    found = judge_given(search, plain, plain.gradient, target, corrections=certificate != "published")
    return _result(found, norm_samples(given - instance.latent.image(plain.point.x)))


def _check(frozen: FrozenProblem, value: Tensor, batch: int, name: str) -> None:
    """DataError or ShapeError unless it is an image with finite numbers."""
    frozen.operator.check_domain(value, name)
    check_batch(value, batch, name)
    if not bool(torch.isfinite(value).all()):
        raise DataError(
            f"certify({name}): NaN or infinite entries.", hint="Pass the result of a solver that converged."
        )


def _result(found: Given, moved: Tensor) -> Certificate:
    """``moved``: distance of x from the constraint, (batch,)."""
    verdict, corrected, point = found.verdict, found.corrected, found.verdict.point
    kind: BoundKind = found.kind
    instance, x, X = point.instance, point.x, point.X
    pullback = instance.adjoint(instance.potential.grad(instance.apply(x)))
    weighted = inner_samples(X, state_residual(instance, x, pullback)).sum()
    scale = math.sqrt(math.prod(point.frozen.operator.domain_shape))
    # Projections do not lengthen ways to points of the constraint: what is alone in the ball around the projected x is
    # alone in one as large around x, if it is in there.
    reaches = verdict.state_error + moved <= verdict.radius
    if not bool((reaches | (verdict.radius == 0)).all()):
        unknown, hindrance = torch.full_like(moved, math.inf), Obstacle.OUTSIDE.met(moved=float(moved.max()))
        verdict = replace(
            verdict,
            error_bound=math.inf,
            hindrance=hindrance,
            loss_interval=(-math.inf, math.inf),
            state_error=unknown,
            adjoint_error=unknown,
            radius=torch.zeros_like(moved),
        )
        corrected, kind = replace(corrected, error_bound=math.inf), "none"
    return Certificate(
        error_bound=(verdict.state_error + moved) / scale * (1.0 + 1e-14),
        gradient=verdict.gradient,
        gradient_error_bound=verdict.error_bound,
        loss=verdict.loss,
        loss_interval=verdict.loss_interval,
        certified=holds_globally(kind, verdict.radius) and math.isfinite(verdict.error_bound),
        bound_kind=kind,
        reason=verdict.reason,
        X=instance.latent.image(X),
        adjoint_error_bound=verdict.adjoint_error,
        gradient_error_estimate=gradient_distance(verdict.gradient, corrected.gradient),
        loss_estimate=verdict.loss + float(weighted),
        corrected_gradient=corrected.gradient,
        corrected_error_bound=corrected.error_bound,
        operator_applications=instance.counter.applications,
        certified_scope=point.frozen.minimiser,
        radius=verdict.radius,
    )
