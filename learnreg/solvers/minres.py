"""Preconditioned minimal residuals on the adjoint equation, which may be semidefinite or indefinite.

Source: Paige and Saunders, SIAM J. Numer. Anal. 12 (1975); preconditioned: Elman, Silvester and Wathen, Finite Elements
and Fast Iterative Solvers (2014), algorithm 4.1. With the Lanczos vectors v_k, z_k = P v_k / gamma_k and
gamma_k = <P v_k, v_k>^½:

    v_{k+1} = H z_k - delta_k / gamma_k v_k - gamma_k / gamma_{k-1} v_{k-1},    delta_k = <z_k, H z_k>       (1)
    a_0 = c_k delta_k - c_{k-1} s_k gamma_k,       a_1 = (a_0² + gamma_{k+1}²)^½                               (2)
    a_2 = s_k delta_k + c_{k-1} c_k gamma_k,       a_3 = s_{k-1} gamma_k                                       (3)
    c_{k+1} = a_0 / a_1,    s_{k+1} = gamma_{k+1} / a_1                                                        (4)
    w_{k+1} = (z_k - a_3 w_{k-1} - a_2 w_k) / a_1,    X += c_{k+1} eta w_{k+1},    eta <- -s_{k+1} eta         (5)
    r <- s_{k+1}² r + c_{k+1} eta / gamma_{k+1} v_{k+1}                                                        (6)

(6) holds for the residual itself, whose norm bounds the error; the iteration minimises <r, P r>. Of
singular equations without a solution X grows once r is as small as it gets, until (6) is rounding: X stays then, and
rounding is what the report says.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from learnreg.linear.samples import expand, inner_samples, norm_samples
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.solvers.base import OWNED, AdjointSolver, Report, SolverState
from learnreg.solvers.preconditioner import Preconditioner, preconditioned, preconditioner_of

__all__ = ["MINRES", "MINRESState"]


_TRUST = 0.1
"""Share of the residual that rounding may make up while X moves."""


@dataclass(frozen=True)
class MINRESState(SolverState):
    """Solution X, its residual r, the last two Lanczos vectors v, the next P v, the last two directions w; per sample
    the last two gamma, c and s, eta, the largest ‖H z‖ / ‖z‖, and whether X still moves; the preconditioner P (None:
    the identity) and memory for responses."""

    X: Tensor
    r: Tensor
    v: tuple[Tensor, Tensor]
    Pv: Tensor
    w: tuple[Tensor, Tensor]
    gamma: tuple[Tensor, Tensor]
    c: tuple[Tensor, Tensor]
    s: tuple[Tensor, Tensor]
    eta: Tensor
    largest: Tensor
    moves: Tensor
    preconditioner: Preconditioner | None
    memory: Tensor = field(metadata=OWNED)


class MINRES(AdjointSolver[MINRESState]):
    """MINRES: the smallest residual, in the norm of the preconditioner, of each Krylov space, whatever the signs of the
    eigenvalues. Of a singular equation that has no solution the residual stays, until rounding rules it. The
    recursion's residual only steers it: certificates recompute the true one.

    Parameters
    ----------
    check_every: steps from one look at the residuals, which waits for the device, to the next.
    precondition: where ``preconditioner_of`` knows one.

    Examples
    --------
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), lr.regularizers.FieldsOfExperts(2, 3))
    >>> b, loss = torch.rand(1, 1, 8, 8), lr.SquaredError(torch.zeros(1, 1, 8, 8))
    >>> lr.hypergradient(problem, b, loss, method=lr.Implicit(lr.solvers.MINRES()), tolerance=0.1).certified
    True
    """

    name = "minres"
    patience = 1000  # residuals of ill-conditioned equations fall by less than 10 % in hundreds of steps

    def __init__(self, check_every: int = 5, precondition: bool = True) -> None:
        self.check_every, self.precondition = check_every, precondition

    def init(self, equation: AdjointEquation, X: Tensor) -> MINRESState:
        X, memory, preconditioner = equation.project(X), torch.empty_like(equation.at_response), None
        if self.precondition:
            preconditioner = preconditioner_of(equation.instance, equation.curvature_diagonal)
        r = equation.residual(X, memory)
        Pv = preconditioned(equation, preconditioner, r)
        gamma, nothing = _size(r, Pv), torch.zeros_like(r)
        one, zero = torch.ones_like(gamma), torch.zeros_like(gamma)
        return MINRESState(
            X, r, (nothing, r), Pv, (nothing, nothing), (one, gamma), (one, one), (zero, zero), gamma, zero,
            one > 0, preconditioner, memory,
        )  # fmt: skip

    def step(self, equation: AdjointEquation, state: MINRESState) -> MINRESState:
        (v_before, v), (w_before, w) = state.v, state.w
        (gamma_before, gamma), (c_before, c), (s_before, s) = state.gamma, state.c, state.s
        z = expand(_inverse(gamma), v) * state.Pv
        h_z = equation.hessian(z, state.memory)
        delta = inner_samples(h_z, z)
        following = torch.addcmul(h_z, expand(delta * _inverse(gamma), v), v, value=-1.0)  # (1)
        following = torch.addcmul(following, expand(gamma * _inverse(gamma_before), v), v_before, value=-1.0)
        Pv = preconditioned(equation, state.preconditioner, following)
        gamma_next = _size(following, Pv)
        a_0 = c * delta - c_before * s * gamma  # (2)
        a_1 = torch.hypot(a_0, gamma_next)
        a_2, a_3 = s * delta + c_before * c * gamma, s_before * gamma  # (3)
        inverse = _inverse(a_1)
        c_next, s_next = a_0 * inverse, torch.where(a_1 > 0, gamma_next * inverse, 1.0)  # (4)
        direction = torch.addcmul(z, expand(a_3, z), w_before, value=-1.0)
        direction = torch.addcmul(direction, expand(a_2, z), w, value=-1.0) * expand(inverse, z)
        X = torch.addcmul(state.X, expand(c_next * state.eta, z), direction)  # (5)
        eta = -s_next * state.eta
        r = expand(s_next**2, z) * state.r + expand(c_next * eta * _inverse(gamma_next), z) * following  # (6)
        largest = torch.maximum(state.largest, norm_samples(h_z) * _inverse(norm_samples(z)))
        moves = state.moves & (_rounding(largest, X) <= _TRUST * norm_samples(state.r))
        X, r = (torch.where(expand(moves, z), new, old) for new, old in ((X, state.X), (r, state.r)))
        return MINRESState(
            X, r, (v, following), Pv, (w, direction), (gamma, gamma_next), (c, c_next), (s, s_next), eta, largest,
            moves, state.preconditioner, state.memory,
        )  # fmt: skip

    def recurring(self, state: MINRESState) -> Hashable:
        return ()

    def report(self, equation: AdjointEquation, state: MINRESState) -> Report:
        residual, mu = norm_samples(state.r), equation.instance.strong_convexity
        bound = residual / mu if mu > 0 else torch.full_like(residual, torch.inf)
        return Report(state.X, residual, bound, _rounding(state.largest, state.X))


def _rounding(largest: Tensor, X: Tensor) -> Tensor:
    """What rounding makes of H X, (batch,)."""
    return torch.finfo(X.dtype).eps * largest * norm_samples(X)


def _size(v: Tensor, Pv: Tensor) -> Tensor:
    """<v, P v>^½, (batch,)."""
    return inner_samples(v, Pv).clamp_min(0.0).sqrt()


def _inverse(value: Tensor) -> Tensor:
    """1 / value, and 0 for 0, where the Krylov space ends."""
    return torch.where(value > 0, 1.0 / torch.where(value > 0, value, 1.0), 0.0)
