"""A Nyström approximation of the Hessian, inverted by Woodbury, and conjugate gradients preconditioned by it.

For H = mu + B on the free pixels and r orthonormal test images Omega, Y = B Omega and with a small shift nu

    B ~ B^ = Y (Omega^T Y)^+ Y^T = U Lambda U^T                                                  (1)
    (mu + B^)^-1 = U (Lambda + mu)^-1 U^T + (1 - U U^T) / mu                                     (2)

0 <= B - B^ falls with the rank r, and is 0 from the number of free pixels on.

Source: Hataya and Yamada, Nyström method for accurate and scalable implicit differentiation, AISTATS 2023: (2) as an
estimate of the inverse; Frangella, Tropp and Udell, Randomized Nyström preconditioning, SIAM J. Matrix Anal. Appl. 44
(2023), algorithm 2.1: (1) from random images, by a shift; (2) as a preconditioner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.linear.arguments import whole_number
from learnreg.linear.samples import expand
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.instance import Instance
from learnreg.solvers.base import SolverState
from learnreg.solvers.conjugate_gradient import CGState, ConjugateGradient

__all__ = ["Nystrom", "NystromInverse", "check_rank"]

_MOST = 20
"""The rank, unless told otherwise: as many Hessian products, which conjugate gradients could take as steps."""

_ROUNDING = 10.0
"""Eigenvalues of B^ below so many times the shift are rounding, and left out."""


@dataclass(frozen=True)
class NystromInverse(SolverState):
    """(2) per sample. U: (batch, rank, n), orthonormal rows or 0. inverse: 1 / (Lambda + mu), (batch, rank). rest: 1
    over what stands for mu, (batch,)."""

    U: Tensor
    inverse: Tensor
    rest: Tensor

    @classmethod
    def of(cls, equation: AdjointEquation, rank: int, seed: int) -> NystromInverse:
        """From ``rank`` Hessian products. Without a modulus the smallest eigenvalue of (1) stands for mu in the last
        term alone."""
        mu = max(equation.instance.strong_convexity, 0.0)
        omega = _test_images(equation, rank, seed)
        memory = torch.empty_like(equation.at_response)
        products = [equation.hessian(v.reshape_as(equation.rhs), memory) for v in omega.unbind(1)]
        Y = torch.nan_to_num(torch.stack(products, 1).flatten(2) - mu * omega, 0.0, 0.0, 0.0)  # the steps will tell
        eps, tiny = torch.finfo(Y.dtype).eps, torch.finfo(Y.dtype).tiny
        nu = eps * Y.flatten(1).norm(dim=1).clamp_min(tiny)[:, None]
        Y = Y + nu[..., None] * omega
        core = omega @ Y.mT
        values, Q = torch.linalg.eigh(0.5 * (core + core.mT))
        root = torch.where(values > nu, values.clamp_min(tiny).rsqrt(), 0.0)  # negative curvature is left out
        _, sizes, U = torch.linalg.svd((root[..., None] * Q.mT) @ Y, full_matrices=False)
        eigenvalues = sizes**2 - nu
        known = eigenvalues > _ROUNDING * nu
        U, eigenvalues = torch.where(known[..., None], U, 0.0), torch.where(known, eigenvalues, 1.0)
        smallest = torch.where(known.any(1), torch.where(known, eigenvalues, torch.inf).amin(1), 1.0)
        rest = torch.full_like(smallest, mu) if mu > 0 else smallest
        return cls(U, 1.0 / (eigenvalues + mu), 1.0 / rest)

    def __call__(self, r: Tensor) -> Tensor:
        """The approximate H^-1 r; no operator application."""
        v = r.flatten(1)
        shares = torch.einsum("brn,bn->br", self.U, v) * (self.inverse - self.rest[:, None])
        v = torch.addcmul(torch.einsum("brn,br->bn", self.U, shares), expand(self.rest, v), v)
        return v.reshape_as(r)


class Nystrom(ConjugateGradient):
    """The Nyström estimate of the solution, then conjugate gradients that (2) preconditions: the first answer is the
    published estimate at that rank (corrected from where it starts), and steps go on from it to any tolerance.

    Parameters
    ----------
    check_every: steps from one look at the residuals, which waits for the device, to the next.
    rank: random images that the Hessian is applied to, 2 operator applications each, per solve; as many as there are
        unknowns at most, from where on the first answer is exact. None: 20, or fewer where conjugate gradients would
        need no more steps than that, about the root of the condition number.
    seed: of the images, the same for every sample.

    Raises
    ------
    ConfigError: a rank that is no positive integer.

    Examples
    --------
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), lr.regularizers.FieldsOfExperts(2, 3))
    >>> b, loss = torch.rand(1, 1, 8, 8), lr.SquaredError(torch.zeros(1, 1, 8, 8))
    >>> lr.hypergradient(problem, b, loss, method=lr.Implicit(lr.solvers.Nystrom(rank=8)), tolerance=0.1).certified
    True
    """

    name = "nystrom"

    def __init__(self, rank: int | None = None, seed: int = 0, check_every: int = 5) -> None:
        super().__init__(check_every)
        self.rank, self.seed = check_rank(rank, "Nystrom"), seed

    def init(self, equation: AdjointEquation, X: Tensor) -> CGState:
        X = equation.project(X)
        inverse = NystromInverse.of(equation, self._rank(equation.instance), self.seed)
        X = X + equation.project(inverse(equation.residual(X)))
        return self._started(equation, X, inverse)

    def _rank(self, instance: Instance) -> int:
        unknowns = math.prod(instance.q.shape[1:])
        if self.rank is not None:
            return min(self.rank, unknowns)
        root = math.sqrt(instance.condition_bound())
        return min(_MOST, unknowns, math.ceil(root) if math.isfinite(root) else _MOST)


def check_rank(rank: int | None, call: str) -> int | None:
    """The rank, or ConfigError unless it is a positive integer, or None."""
    return None if rank is None else whole_number(rank, f"{call}(rank)")


def _test_images(equation: AdjointEquation, rank: int, seed: int) -> Tensor:
    """Omega, (batch, rank, n), 0 off the free pixels; drawn on the CPU, so that devices agree."""
    like = equation.rhs
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn((rank, *like.shape[1:]), generator=generator, dtype=torch.float64).to(like)
    free = torch.stack([equation.project(v.expand_as(like)) for v in drawn], 1).flatten(2)
    basis = torch.linalg.qr(free.mT)[0].mT
    # where fewer pixels are free than images drawn, what fills the basis up is none of theirs
    return torch.stack([equation.project(v.reshape_as(like)) for v in basis.unbind(1)], 1).flatten(2)
