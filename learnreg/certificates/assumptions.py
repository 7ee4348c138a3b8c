"""What a certificate needs and whether it is there."""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.certificates.interval import response_radius
from learnreg.certificates.obstacle import Hindrance, Obstacle
from learnreg.linear.examination import contradiction, foreign_operators, is_examined
from learnreg.linear.samples import expand
from learnreg.losses import UpperLoss
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.instance import Instance

__all__ = ["constraint_decided", "missing_assumption", "missing_state_assumption", "unsettled"]


def missing_state_assumption(instance: Instance, x: Tensor) -> Hindrance | None:
    """Why x has no rigorous error bound; None if it has one. Costs two applications of operators that are not this
    package's."""
    for operator, name in ((instance.forward, "forward"), (instance.analysis, "analysis")):
        mismatch = operator.adjoint_mismatch()
        if mismatch > 0:
            return Obstacle.INEXACT_ADJOINT.met(operator=name, mismatch=mismatch)
        if not is_examined(operator):
            return Obstacle.UNEXAMINED.met(operator=name)
        foreign = next(foreign_operators(operator), None) is not None
        instance.counter.applications += 2 if foreign and operator is instance.analysis else 0
        if foreign and (sentence := contradiction(operator, x)):
            return Obstacle.CONTRADICTION.met(operator=name, sentence=sentence)
    if instance.unexamined:
        return Obstacle.DECLARATION.met(sentence=f"{instance.unexamined} was not examined (examine = False)")
    if instance.potential.foreign and (sentence := instance.potential.doubt(instance.apply(x), gradients=False)):
        return Obstacle.DECLARATION.met(sentence=sentence)
    return None if instance.strong_convexity > 0 or instance.local else Obstacle.NO_MODULUS.met()


def missing_assumption(problem: FrozenProblem, instance: Instance, loss: UpperLoss, x: Tensor) -> Hindrance | None:
    """Why the hypergradient has no rigorous error bound at x, whatever the accuracy; None if nothing stands in the
    way."""
    hindrance = missing_state_assumption(instance, x)
    if hindrance is not None:
        return hindrance
    if loss.gradient_lipschitz is None:
        return Obstacle.LOSS_CONSTANT.met()
    if (dtype := loss.computes_in(x)) != x.dtype:
        return Obstacle.LOSS_PRECISION.met(dtype=dtype)
    if instance.potential.foreign:
        with torch.enable_grad():
            potential = problem.terms.potential.to(x.dtype)
        instance.counter.applications += 1
        if sentence := potential.doubt(problem.fixed.operator(x), gradients=True):
            return Obstacle.DECLARATION.met(sentence=sentence)
    if problem.reparametrized:
        return Obstacle.REPARAMETRIZED.met(names=", ".join(problem.reparametrized))
    if problem.tied:
        return Obstacle.TIED.met(names=", ".join(problem.tied))
    roles = problem.parameter_roles()
    unknown = [n for n, p in problem.regularizer.named_parameters() if p.requires_grad and n not in roles]
    if unknown:
        return Obstacle.UNNAMED_PARAMETER.met(names=", ".join(unknown))
    if instance.analysis.norm_bound_kind == "probabilistic":
        return Obstacle.PROBABLE_NORM.met(operator="analysis")
    named = {roles[n] for n, p in problem.regularizer.named_parameters() if p.requires_grad}
    known = {group.name for group in instance.parameter_groups()}
    if strange := sorted(named - known):
        if instance.analysis.parameter_lipschitz() is None:
            return Obstacle.PARAMETER_CONSTANT.met(operator="analysis")
        return Obstacle.UNKNOWN_ROLE.met(role=strange[0], known=", ".join(sorted(known)))
    if problem.operator.parameter_lipschitz() is None:
        return Obstacle.PARAMETER_CONSTANT.met(operator="forward")
    beyond = any(p.requires_grad for p in (*problem.operator.parameters(), *problem.data_term.parameters()))
    if beyond and problem.operator.norm_bound_kind == "probabilistic":
        return Obstacle.PROBABLE_NORM.met(operator="forward")
    return None


def constraint_decided(
    instance: Instance,
    x: Tensor,
    t: Tensor,
    residual: Tensor,
    e: Tensor,
    curvature: Tensor,
    doubt: Tensor | float = 0.0,
) -> bool:
    """Whether each pixel of the exact solution is known to be strictly inside the box, or on its boundary with a
    nonzero multiplier: |x_i - x^_i| <= e, and with dx = x - x^ the gradient changes by |<e_i, Hbar dx>| <= √(Hbar_ii
    <dx, Hbar dx>), where Hbar_ii <= h = ‖M‖ + hi ‖K‖² and <dx, Hbar dx> <= min(<r, dx>, h e²) <= min(‖r‖ e, h e²) as in
    Lemma 1.

    Latent variables that their responses keep at 0 need no multiplier.

    Parameters
    ----------
    t: K x. residual: ‖r‖, that of the reduced gradient, with its rounding, (batch,). doubt: how far entries of the
        gradient at x may be from the instance's, (batch,).
    """
    if not instance.box.constrains:
        return True
    lower, upper = instance.box.bounds_for(x)
    radius = expand(e, x)
    free = (x - radius > lower) & (x + radius < upper)
    largest = instance.quadratic.norm() + curvature * instance.analysis.norm_bound() ** 2
    change = torch.minimum(largest * e, (largest * residual * e).sqrt() * (1.0 + 1e-12)) + doubt
    change = change.reshape(radius.shape)
    margin = instance.full_gradient(x)
    active = ((x <= lower) & (margin > change)) | ((x >= upper) & (margin < -change))
    decided = free | active
    idle = _idle(instance, x, t, e)
    return bool((decided if idle is None else decided | (idle & (x <= lower))).all())


def unsettled(instance: Instance, x: Tensor, t: Tensor, e: Tensor) -> Tensor | None:
    """Where latent variables are 0 in the exact solution, since their responses keep them there, and rounding left
    something else in x: as x. None if there are none."""
    idle = _idle(instance, x, t, e)
    found = None if idle is None else idle & (x > 0.0)
    return found if found is not None and bool(found.any()) else None


def _idle(instance: Instance, x: Tensor, t: Tensor, e: Tensor) -> Tensor | None:
    if instance.latent.idle is None:
        return None
    idle = instance.latent.idle(t, response_radius(instance, e, t))
    return torch.cat([torch.zeros_like(x[:, : -idle.shape[1]], dtype=torch.bool), idle], 1)
