"""Lower levels with an l1-norm, once it is known which responses vanish: one linear system (Lemma L2).

    M x + K_B^T y_B = q - K_A^T y_A - K_D^T y_D,    K_B x = 0        (1)

A are the responses with a sign s and y_A = weight s, B independent rows of K with the kernel of all rows of vanishing
responses, and D the others of these. Matrices of one sample are formed, in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor

from learnreg.errors import AssumptionError, ConfigError
from learnreg.kernels.numbers import number_like
from learnreg.lower_level.instance import Instance

__all__ = ["DenseAnalysis", "ReducedSystem", "independent_rows"]

_MOST_UNKNOWNS, _MOST_ENTRIES = 1024, 2**24
_RANK = 1e-9
"""Singular values below this share of the largest are taken for 0 to begin with; what is certified asks for more."""

_KINDS, _DENOMINATORS, _LARGEST_INTEGER = 64, 12, 2.0**53
"""Sizes of entries at most that are looked at for a common unit; the largest denominator of a combination; and what
float64 counts to."""


@dataclass(frozen=True)
class DenseAnalysis:
    """M (n, n), K (m, n), q (n,) and the weights (m,) of one sample, flat."""

    M: Tensor
    K: Tensor
    q: Tensor
    weight: Tensor

    @classmethod
    def of(cls, instance: Instance) -> list[DenseAnalysis]:
        """Those of each sample of an instance in float64. Counts K on as many images as there are unknowns.

        Raises
        ------
        ConfigError: too many unknowns for matrices.
        """
        n, m = math.prod(instance.forward.domain_shape), math.prod(instance.analysis.range_shape)
        if n > _MOST_UNKNOWNS or n * m > _MOST_ENTRIES:
            raise ConfigError(
                f"ClosedForm: the l1-analysis case forms matrices, of up to {_MOST_UNKNOWNS:,} pixels and "
                f"{_MOST_ENTRIES:,} entries, but images have {n:,} and responses {m:,}; use smaller images, or "
                "lr.PseudoHuber with a small smoothing and lr.Implicit()."
            )
        unit = torch.eye(n, dtype=instance.q.dtype, device=instance.q.device).reshape(n, *instance.forward.domain_shape)
        instance.counter.applications += math.ceil(n / instance.batch)
        K = instance.analysis(unit).reshape(n, m).T.contiguous()
        weight = number_like(instance.potential.weight, K)
        weight = weight.expand(instance.analysis.range_shape).flatten()
        found = []
        for i in range(instance.batch):
            M = instance.quadratic.select(slice(i, i + 1))(unit).reshape(n, n)
            found.append(cls(0.5 * (M + M.T), K, instance.q[i].flatten(), weight))
        return found

    @cached_property
    def row_norms(self) -> Tensor:
        """‖k_i‖."""
        sizes: Tensor = self.K.norm(dim=1)
        return sizes


class ReducedSystem:
    """(1) for vanishing responses ``zero`` (m,) bool. basis, rest: the indices B and D. smallest: a lower bound of the
    smallest singular value of K_B, up to the rounding of its own computation, which is subtracted.

    Raises
    ------
    AssumptionError: M is singular on the kernel.
    """

    def __init__(self, dense: DenseAnalysis, zero: Tensor) -> None:
        self.dense, self.zero = dense, zero
        index = zero.nonzero()[:, 0]
        rows = dense.K[index]
        sizes = torch.linalg.svdvals(rows)
        rank = int((sizes > _RANK * sizes[:1].amax()).sum()) if len(index) else 0
        kept = torch.ones_like(index, dtype=torch.bool)
        if rank < len(index):
            kept = torch.zeros_like(kept).index_fill(0, independent_rows(rows, rank), True)
        self.basis, self.rest = index[kept], index[~kept]
        if rank == len(index):
            self.smallest = _lower(sizes, rows)
        else:
            self.smallest = _lower(torch.linalg.svdvals(dense.K[self.basis]), dense.K[self.basis])
        n, K_B = dense.q.numel(), dense.K[self.basis]
        whole = dense.K.new_zeros(n + rank, n + rank)
        whole[:n, :n], whole[n:, :n], whole[:n, n:] = dense.M, K_B, K_B.T
        self._matrix = whole
        self._factors = torch.linalg.lu_factor_ex(whole)
        if int(self._factors.info):
            raise AssumptionError("ClosedForm: the energy has no unique minimum; add a ridge.")

    def solve(self, rhs: Tensor) -> tuple[Tensor, Tensor]:
        """x and all of y, 0 but for y_B, with M x + K_B^T y_B = rhs and K_B x = 0."""
        n = self.dense.q.numel()
        whole = torch.cat([rhs, rhs.new_zeros(len(self.basis))])
        solved = self._solve(whole)
        solved = solved + self._solve(whole - self._matrix @ solved)
        y = rhs.new_zeros(len(self.zero))
        y[self.basis] = solved[n:]
        return solved[:n], y

    def _solve(self, rhs: Tensor) -> Tensor:
        LU, pivots, _ = self._factors
        solved: Tensor = torch.linalg.lu_solve(LU, pivots, rhs[:, None])
        return solved[:, 0]

    def dependent(self) -> bool:
        """Whether the rows D are combinations of the rows B *exactly*: all entries are integer multiples of one number,
        and the combinations are fractions of a small denominator. Without rows D they are."""
        if not len(self.rest):
            return True
        B, D = self.dense.K[self.basis], self.dense.K[self.rest]
        whole = _integers(torch.cat([B, D]))
        if whole is None:
            return False
        factors = torch.linalg.lstsq(B.T, D.T).solution.T
        for denominator in range(1, _DENOMINATORS + 1):
            numerators = (denominator * factors).round()
            largest = (numerators.abs().sum(1).amax() + denominator) * whole.abs().amax()
            same = (numerators @ whole[: len(B)] == denominator * whole[len(B) :]).all()
            if float(largest) < _LARGEST_INTEGER and bool(same):  # no product or sum is rounded
                return True
        return False


def _integers(entries: Tensor) -> Tensor | None:
    """The integers that the entries are, times one number, exactly; None where they are none, or of too many kinds."""
    sizes = torch.unique(entries.abs())
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return torch.zeros_like(entries)
    if len(sizes) > _KINDS:
        return None
    unit = Fraction(float(sizes[0]))
    exact = all((Fraction(float(size)) / unit).denominator == 1 for size in sizes)
    return (entries / sizes[0]).round() if exact else None


def independent_rows(rows: Tensor, rank: int) -> Tensor:
    """Indices of so many independent rows, each the one with the largest part orthogonal to those before."""
    left, chosen = rows.clone(), []
    for _ in range(rank):
        chosen.append(int(left.square().sum(1).argmax()))
        direction = left[chosen[-1]] / left[chosen[-1]].norm()
        left.addr_(left @ direction, direction, alpha=-1.0)
    return torch.tensor(chosen, dtype=torch.int64, device=rows.device)


def _lower(sizes: Tensor, rows: Tensor) -> float:
    """The smallest of singular values, less what rounding may have added; infinite of none."""
    if not len(sizes):
        return math.inf
    rounding = 8.0 * max(rows.shape) * torch.finfo(rows.dtype).eps * float(sizes[0])
    return float(sizes[-1]) - rounding
