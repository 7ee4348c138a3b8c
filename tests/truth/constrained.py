"""The truth about strongly convex functions under linear constraints: every set of active inequalities is tried, by
Newton's method on its dense KKT system in float64; nothing of the package."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, combinations

import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

__all__ = ["constrained_minimum"]


def constrained_minimum(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    equalities: tuple[Tensor, Tensor],
    inequalities: tuple[Tensor, Tensor],
    likely: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """argmin f over E x = e, C x <= d, the multipliers of the inequalities, and which are active; ``likely`` ones are
    tried first."""
    (E, e), (C, d) = equalities, inequalities
    every = chain.from_iterable(combinations(range(len(C)), k) for k in range(min(len(C), len(x) - len(E)) + 1))
    for active in chain([likely], every):
        rows, sides = torch.cat([E, C[list(active)]]), torch.cat([e, d[list(active)]])
        if len(rows) and int(torch.linalg.matrix_rank(rows)) < len(rows):
            continue
        v, multipliers = _newton(f, x, rows, sides)
        own = multipliers[len(E) :]
        if bool((own >= 0).all()) and bool((C @ v <= d + 1e-10).all()):
            every_one = torch.zeros(len(C), dtype=torch.float64)
            every_one[list(active)] = own
            return v, every_one, active
    raise ValueError("no set of active constraints fits")


def _newton(f: Callable[[Tensor], Tensor], v: Tensor, rows: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    n, m = len(v), len(rows)
    multipliers = torch.zeros(m, dtype=torch.float64)
    for _ in range(60):
        system = torch.zeros(n + m, n + m, dtype=torch.float64)
        system[:n, :n], system[:n, n:], system[n:, :n] = hessian(f, v), rows.T, rows
        step = torch.linalg.solve(system, torch.cat([-jacobian(f, v), sides - rows @ v]))
        v, multipliers = v + step[:n], step[n:]
        if step[:n].norm() <= 1e-14 * (1.0 + v.norm()):
            break
    return v, multipliers
