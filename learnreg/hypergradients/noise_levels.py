"""Hypergradients and certificates of batches whose samples have noise levels of their own: each group of one level has
its own problem, and the mean over samples is put together of theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from learnreg.certificates.judgement import RUNGS
from learnreg.hypergradients.search import Start
from learnreg.linear.samples import norm_samples
from learnreg.losses import UpperLoss
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.result import Certificate, Hypergradient
from learnreg.solvers.noise_levels import in_order, worst_kind, worst_status

__all__ = ["certificate_over_levels", "hypergradient_over_levels"]

Gradient = dict[str, Tensor]
Parts = Sequence[tuple[Tensor, FrozenProblem]]

_ROUNDS, _SHARE = 3, 0.9
_NO_TOLERANCE = 1e-300


def hypergradient_over_levels(
    parts: Parts,
    b: Tensor,
    loss: UpperLoss,
    start: Start | None,
    goal: tuple[float, float],
    find: Callable[[FrozenProblem, Tensor, UpperLoss, Start | None, float, float], Hypergradient],
) -> Hypergradient:
    """The hypergradient of the mean loss; ``find`` computes that of a group, to a relative and an absolute tolerance.
    Where gradients of groups cancel, they are found more accurately than their own sizes ask for."""
    indices, batch = [index for index, _ in parts], len(b)
    losses = [loss.part(index, batch) for index in indices]
    starts = [None if start is None else start.part(index, batch / len(index)) for index in indices]
    relative, absolute = goal
    for attempt in range(_ROUNDS):
        found = [
            find(part, b[index], of_part, begin, relative, absolute)
            for (index, part), of_part, begin in zip(parts, losses, starts, strict=True)
        ]
        whole = _joined(found, indices, batch)
        enough = max(goal[0] * whole.norm, goal[1])
        if whole.error_bound <= enough or not whole.status.converged or attempt + 1 == _ROUNDS:
            break
        relative, absolute = _NO_TOLERANCE, _SHARE**attempt * _SHARE * enough
        starts = [Start.after(result) for result in found]
    return whole


def certificate_over_levels(
    parts: Parts,
    b: Tensor,
    loss: UpperLoss,
    x: Tensor,
    X: Tensor | None,
    find: Callable[[FrozenProblem, Tensor, UpperLoss, Tensor, Tensor | None], Certificate],
) -> Certificate:
    """The certificate of the mean loss; ``find`` judges a group."""
    indices, batch = [index for index, _ in parts], len(b)
    found = [
        find(part, b[i], loss.part(i, batch), x[i], None if X is None else X[i] * (batch / len(i))) for i, part in parts
    ]
    shares = [len(index) / batch for index in indices]
    shared = _of_the_mean(found, shares, indices)
    return replace(
        found[0],
        **shared,
        error_bound=in_order([c.error_bound for c in found], indices),
        gradient_error_bound=_bound([c.gradient_error_bound for c in found], shares, shared["gradient"]),
        gradient_error_estimate=_weighted([c.gradient_error_estimate for c in found], shares),
        loss_estimate=_weighted([c.loss_estimate for c in found], shares),
    )


def _joined(found: Sequence[Hypergradient], indices: Sequence[Tensor], batch: int) -> Hypergradient:
    shares = [len(index) / batch for index in indices]
    shared = _of_the_mean(found, shares, indices)
    return replace(
        found[0],
        **shared,
        error_bound=_bound([hg.error_bound for hg in found], shares, shared["gradient"]),
        x=in_order([hg.x for hg in found], indices),
        state_error_bound=in_order([hg.state_error_bound for hg in found], indices),
        status=worst_status([hg.status for hg in found]),
        steps=max(hg.steps for hg in found),
        rung=next((rung for rung in RUNGS if any(hg.rung == rung for hg in found)), ""),
        accuracy=_least([hg.accuracy for hg in found]),
    )


def _least(found: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    """The smaller of each number, of those that are known."""
    state, adjoint = zip(*(one for one in found if one is not None), strict=True) if any(found) else ((), ())
    return (min(state), min(adjoint)) if state else None


def _of_the_mean(
    found: Sequence[Hypergradient] | Sequence[Certificate], shares: Sequence[float], indices: Sequence[Tensor]
) -> dict[str, Any]:
    """What hypergradients and certificates of the mean loss both say, by field."""
    gradient = _mean([one.gradient for one in found], shares)
    corrected = _mean([one.corrected_gradient for one in found], shares)
    bounds = [one.adjoint_error_bound for one in found]
    adjoint, adjoint_bound = _adjoint_states([one.X for one in found], bounds, shares, indices)
    low, high = zip(*(one.loss_interval for one in found), strict=True)
    return {
        "gradient": gradient,
        "corrected_gradient": corrected,
        "corrected_error_bound": _bound([one.corrected_error_bound for one in found], shares, corrected),
        "loss": _weighted([one.loss for one in found], shares),
        "loss_interval": (_weighted(low, shares), _weighted(high, shares)),
        "certified": all(one.certified for one in found),
        "bound_kind": worst_kind([one.bound_kind for one in found]),
        "reason": next((one.reason for one in found if one.reason), ""),
        "X": adjoint,
        "adjoint_error_bound": adjoint_bound,
        "operator_applications": max(one.operator_applications for one in found),
        "certified_scope": found[0].certified_scope,
        "radius": in_order([one.radius for one in found], indices),
    }


def _adjoint_states(
    states: Sequence[Tensor], bounds: Sequence[Tensor], shares: Sequence[float], indices: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Those of the mean loss, with bounds (batch,) that count how the shares of them are rounded."""
    scaled = [share * X for share, X in zip(shares, states, strict=True)]
    whole = [
        share * bound + torch.finfo(X.dtype).eps * norm_samples(X.double())
        for share, bound, X in zip(shares, bounds, scaled, strict=True)
    ]
    return in_order(scaled, indices), in_order(whole, indices)


def _weighted(values: Sequence[float], shares: Sequence[float]) -> float:
    """The mean over samples."""
    return sum(share * value for share, value in zip(shares, values, strict=True))


def _bound(bounds: Sequence[float], shares: Sequence[float], gradient: Gradient) -> float:
    """Of the error of a mean gradient, which is rounded to the dtype of the parameters."""
    rounding = sum(torch.finfo(g.dtype).eps * float(g.double().norm()) for g in gradient.values())
    return _weighted(bounds, shares) * (1.0 + 1e-14) + rounding


def _mean(gradients: Sequence[Gradient], shares: Sequence[float]) -> Gradient:
    return {
        name: torch.stack([share * g[name].double() for share, g in zip(shares, gradients, strict=True)])
        .sum(0)
        .to(first)
        for name, first in gradients[0].items()
    }
