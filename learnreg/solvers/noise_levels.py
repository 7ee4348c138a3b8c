"""Solutions of batches whose samples have noise levels of their own, put together of those of each level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learnreg.result import BoundKind, History, Solution, Status

__all__ = ["in_order", "joined", "worst_kind", "worst_status"]

_KINDS: tuple[BoundKind, ...] = ("rigorous", "estimate", "none")


def joined(found: Sequence[Solution], indices: Sequence[Tensor]) -> Solution:
    """The solution of the batch from those of its groups, the samples ``indices``. Applications are those of the group
    that took most, as in one run over the batch."""
    return Solution(
        x=in_order([s.x for s in found], indices),
        dual=lambda: in_order([s.y for s in found], indices),
        error_bound=in_order([s.error_bound for s in found], indices),
        bound_kind=worst_kind([s.bound_kind for s in found]),
        status=worst_status([s.status for s in found]),
        steps=max(s.steps for s in found),
        operator_applications=max(s.operator_applications for s in found),
        solver=", ".join(dict.fromkeys(s.solver for s in found)),
        reason=next((s.reason for s in found if s.reason), ""),
        history=History.joined([s.history for s in found], indices),
        certified_scope=found[0].certified_scope,
        radius=in_order([s.radius for s in found], indices),
    )


def in_order(parts: Sequence[Tensor], indices: Sequence[Tensor]) -> Tensor:
    """Samples of groups in the order of their batch."""
    return torch.cat(list(parts))[torch.cat(list(indices)).argsort()]


def worst_kind(kinds: Sequence[BoundKind]) -> BoundKind:
    """What can be said of all."""
    return max(kinds, key=_KINDS.index)


def worst_status(statuses: Sequence[Status]) -> Status:
    """The first that did not converge, or an estimate, if there is any."""
    return next((s for s in statuses if not s.converged), max(statuses, key=lambda s: s is not Status.CONVERGED))
