"""``learnreg.hypergradient``: tighten the lower level and its adjoint until the certificate meets the tolerance."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from learnreg.certificates.judgement import PointCertificate
from learnreg.errors import ConfigError, SolverError
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.chain import chain_hypergradient
from learnreg.hypergradients.given import of_own_gradient
from learnreg.hypergradients.implicit import chosen_method
from learnreg.hypergradients.ladder_search import LadderSearch
from learnreg.hypergradients.noise_levels import hypergradient_over_levels
from learnreg.hypergradients.pattern_search import PatternSearch
from learnreg.hypergradients.plain_search import PlainSearch
from learnreg.hypergradients.published_search import PublishedSearch
from learnreg.hypergradients.search import Request, Search, Start
from learnreg.hypergradients.sharp_search import SharpSearch
from learnreg.linear.arguments import real_number
from learnreg.linear.grad_mode import outside_inference
from learnreg.losses import UpperLoss, check_loss
from learnreg.lower_level.blame import why_stagnated
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.problem import LowerLevelProblem, freeze
from learnreg.result import Hypergradient, Status
from learnreg.solvers.solve import FailureOption, check_failure_option, check_max_steps, check_tolerance

__all__ = ["CertificateName", "Start", "hypergradient"]

CertificateName = Literal["auto", "none", "published", "sharp"]

_SEARCHES: dict[str, tuple[type[Search], tuple[PointCertificate, ...]]] = {
    "auto": (LadderSearch, ("frobenius", "sharp")),
    "none": (PlainSearch, ()),
    "published": (PublishedSearch, ("published",)),
    "sharp": (SharpSearch, ("sharp",)),
}


@outside_inference
def hypergradient(
    problem: LowerLevelProblem | FrozenProblem,
    b: Tensor,
    loss: UpperLoss,
    method: HypergradientMethod | None = None,
    tolerance: float = 1e-2,
    *,
    absolute_tolerance: float = 0.0,
    max_steps: int | None = None,
    certificate: CertificateName = "auto",
    start: Start | None = None,
    on_failure: FailureOption = "return",
) -> Hypergradient:
    """Gradient of ``loss`` at the lower-level solution with respect to all learnable parameters, with an error bound.

    Parameters
    ----------
    problem: the lower level, or ``problem.frozen()``.
    absolute_tolerance: an error of the gradient, as a 2-norm, that is small enough whatever its length.
    b: measurements (batch, *range_shape).
    method: None takes ``Piggyback()`` where it was measured to be faster (from a cold start for total variation and
        ill-conditioned filter banks; for very ill-conditioned lifted networks) and ``Implicit()`` elsewhere. Of a
        method that returns a gradient of its own, ``gradient`` is that one and ``error_bound`` bounds it;
        ``corrected_gradient`` is a certified one that meets the tolerance where corrections can.
    tolerance: the error bound is at most max(tolerance ‖gradient‖, absolute_tolerance); any positive number. Where no
        bound exists, the error is *estimated* and ``certified`` is False.
    max_steps: lower-level iterations, and adjoint iterations, at most; None stops when the bound stagnates, too.
    certificate: "auto", the bound that meets the tolerance in the least time: by Frobenius norms at a point accurate
        enough for it, then the sharp one; ``rung`` of the result names it. "sharp": Newton corrections, energy norms
        and Gram matrices, never larger at a point. "published": norms of all terms at one point. With "auto" and
        "sharp" the gradient returned is the corrected one. "none": no bound; states to relative accuracies of
        0.01 and 0.3 times the tolerance, in the precision of b.
    start: warm start.
    on_failure: "return" a Hypergradient whose status says what happened, or "raise".

    Raises
    ------
    ShapeError, DataError, ConfigError: bad input. SolverError: tolerance not met, with ``on_failure="raise"``; its
    ``result`` is the Hypergradient.
    """
    check_failure_option(on_failure)
    check_max_steps(max_steps)
    check_certificate(certificate)
    absolute = real_number(absolute_tolerance, "absolute_tolerance", least=0.0)
    goal = (check_tolerance(tolerance), absolute)
    chosen = None if method is None else chosen_method(method)
    kind, rungs = _SEARCHES[certificate]

    def find(
        frozen: FrozenProblem, b: Tensor, loss: UpperLoss, start: Start | None, relative: float, absolute: float
    ) -> Hypergradient:
        request = Request(relative, absolute, max_steps, rungs)
        if frozen.chain is not None:
            return chain_hypergradient(frozen, b, loss, chosen, request, start)
        search = kind if frozen.fixed.potential.differentiable else _without_gradient(certificate)
        return _find(search(frozen, b, loss, chosen, request), start)

    parts = freeze(problem).parts(b)
    if len(parts) == 1:
        result = find(parts[0][1], b, loss, start, *goal)
    else:
        result = hypergradient_over_levels(parts, b, check_loss(loss), start, goal, find)
    if on_failure == "raise" and not result.status.converged:
        raise SolverError(
            f"hypergradient(tolerance={tolerance:g}): relative error bound {result.relative_error_bound:.3g}. "
            f"{result.reason or result.status.value}",
            result,
        )
    return result


def _find(search: Search, start: Start | None) -> Hypergradient:
    """Of samples of one noise level."""
    begin = search.begin(start)
    goal = search.first_goal(begin)
    point, outcome = search.improve(begin, goal)
    if outcome.status is Status.STAGNATED and search.request.rungs and (fault := why_stagnated(search.exact_instance)):
        return search.result(search.judge(point), math.inf, "none", Status.STAGNATED, fault)
    if search.method is None or outcome.gradient is None or not search.request.rungs:
        return search.follow(point, outcome, goal)
    return of_own_gradient(search, search.method, point, outcome, goal)


def _without_gradient(certificate: CertificateName) -> type[Search]:
    """The search for potentials that are not differentiable."""
    if certificate == "published":
        raise ConfigError(
            "certificate='published': it needs a derivative of the potential, which AbsoluteValue does not have at 0; "
            "use 'auto', or lr.PseudoHuber with a small smoothing."
        )
    return PatternSearch


def check_certificate(certificate: CertificateName) -> CertificateName:
    """The certificate, or ConfigError unless it is known."""
    if not isinstance(certificate, str) or certificate not in _SEARCHES:
        expected = ", ".join(map(repr, _SEARCHES))
        raise ConfigError(f"certificate={certificate!r}: expected one of {expected}.")
    return certificate
