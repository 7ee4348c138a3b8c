"""Operators on top of each other: any two, or those of sums, each with its own potential behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from learnreg.errors import OperatorError
from learnreg.linear.norms import NormBound, NormKind, dense_matrix, matrix_norm_bound
from learnreg.linear.operator import LinearOperator, Pair
from learnreg.linear.parameter_groups import Pairing
from learnreg.linear.share import Share

__all__ = ["Stack", "VStack", "vstack"]

_DENSE = 256
"""Unknowns up to which the norm is that of the dense matrix."""


class Stack(LinearOperator):
    """(A_1 x, A_2 x, ...), flattened one after the other.

    ``norm_bound`` is the root of the sum of squares of the parts' bounds, at most the root of their number times the
    largest of them; that of the whole matrix up to 256 unknowns.

    names: what stands before the names of the parts' parameter groups; None: their numbers.
    """

    def __init__(self, operators: Sequence[LinearOperator], names: Sequence[str] | None = None) -> None:
        domain = operators[0].domain_shape
        for operator in operators:
            if operator.domain_shape != domain:
                raise OperatorError(
                    f"Stack of {type(operators[0]).__name__} and {type(operator).__name__}: domains {domain} and "
                    f"{operator.domain_shape} differ.",
                    "stack",
                )
        self._shares: tuple[Share, ...] = Share.of([operator.range_shape for operator in operators])
        super().__init__(domain, (self._shares[-1].end,))
        self._names = tuple(f"{k}." for k in range(len(operators))) if names is None else tuple(names)
        for k, operator in enumerate(operators):
            self.add_module(str(k), operator)

    @property
    def parts(self) -> list[LinearOperator]:
        return [m for m in self._modules.values() if isinstance(m, LinearOperator)]

    @property
    def shares(self) -> tuple[Share, ...]:
        """Where the range of each part lies."""
        return self._shares

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x).flatten(1) for part in self.parts], 1)

    def forward_into(self, x: Tensor, out: Tensor) -> Tensor:
        for part, share in zip(self.parts, self._shares, strict=True):
            share.flat(out).copy_(part(x).flatten(1))
        return out

    def adjoint(self, y: Tensor) -> Tensor:
        images = [part.adjoint(share.within(y)) for part, share in zip(self.parts, self._shares, strict=True)]
        return torch.stack(images).sum(0) if len(images) > 2 else sum(images[1:], images[0])

    def _find_norm(self) -> NormBound:
        if math.prod(self.domain_shape) <= _DENSE:
            return NormBound(matrix_norm_bound(dense_matrix(self.forward, self.domain_shape, device=self._device())))
        found = [part.norm() for part in self.parts]
        worst: tuple[NormKind, ...] = ("probabilistic", "declared", "rigorous")
        kind = next(k for k in worst if any(bound.kind == k for bound in found))
        return NormBound(math.hypot(*(bound.value for bound in found)), kind, sum(bound.failure for bound in found))

    def adjoint_mismatch(self) -> float:
        return max(part.adjoint_mismatch() for part in self.parts)

    def gram_lower_bound(self) -> float:
        return sum(part.gram_lower_bound() for part in self.parts)

    def row_norms(self, grouped: bool) -> Tensor | float:
        """Those of each part, whose own groups they are."""
        return torch.cat([share.spread(part.row_norms(grouped)) for part, share in self.pairs()])

    def channel_norm(self, weights: Tensor) -> float | None:
        """For a weight of each response: from the largest of each part."""
        if weights.dim() != 1 or weights.numel() != self.range_shape[0]:
            return None
        largest = (float(weights[share.first : share.end].max()) for share in self._shares)
        return math.hypot(*(math.sqrt(w) * part.norm_bound() for w, part in zip(largest, self.parts, strict=True)))

    def part_at(self, share: Share) -> LinearOperator:
        part, own = next((part, own) for part, own in self.pairs() if own.first <= share.first < own.end)
        return part if own == share else part.part_at(replace(share, first=share.first - own.first))

    def pairs(self) -> list[tuple[LinearOperator, Share]]:
        """Each part and where its range lies."""
        return list(zip(self.parts, self._shares, strict=True))

    def parameter_lipschitz(self) -> float | None:
        """The largest of the parts', whose squares add up: each sees its own share of p."""
        constants = [part.parameter_lipschitz() for part in self.parts]
        known = [c for c in constants if c is not None]
        return max(known) if len(known) == len(constants) else None

    def parameter_groups(self) -> tuple[Pairing, ...]:
        """Those of each part, "operator" of the second one under the name "1.operator", unless it has another one."""
        return tuple(
            _PairingOfPart(group, name, share)
            for name, (part, share) in zip(self._names, self.pairs(), strict=True)
            for group in part.parameter_groups()
        )


class _PairingOfPart(Pairing):
    """A group of one part, which sees the share of the responses that is its own."""

    def __init__(self, group: Pairing, prefix: str, share: Share) -> None:
        super().__init__(group.lipschitz, f"{prefix}{group.name}")
        self.group, self.prefix, self.share = group, prefix, share

    def by_traces(self) -> Pairing:
        return _PairingOfPart(self.group.by_traces(), self.prefix, self.share)

    def dual_norm(self, p: Tensor) -> Tensor:
        return self.group.dual_norm(self.share.within(p))

    def weighted_norm(self, u: Tensor, high: Tensor) -> Tensor:
        return self.group.weighted_norm(u, self.share.within(high))

    def perturbation_norm(self, u: Tensor, bent: Tensor) -> Tensor:
        return self.group.perturbation_norm(u, self.share.within(bent))


class VStack(Pair):
    """[A; B]: both results, flattened and concatenated, shape (batch, m_A + m_B)."""

    def __init__(self, first: LinearOperator, second: LinearOperator) -> None:
        if first.domain_shape != second.domain_shape:
            raise OperatorError(
                f"vstack of {type(first).__name__} and {type(second).__name__}: domains {first.domain_shape} and "
                f"{second.domain_shape} differ.",
                "vstack",
            )
        self._rows = math.prod(first.range_shape)
        super().__init__(first, second, first.domain_shape, (self._rows + math.prod(second.range_shape),))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x).flatten(1), self.second(x).flatten(1)], dim=1)

    def adjoint(self, y: Tensor) -> Tensor:
        top = y[:, : self._rows].reshape(-1, *self.first.range_shape)
        bottom = y[:, self._rows :].reshape(-1, *self.second.range_shape)
        return self.first.adjoint(top) + self.second.adjoint(bottom)

    def _bound_of_parts(self) -> float:
        return math.hypot(self.first.norm_bound(), self.second.norm_bound())

    def gram_lower_bound(self) -> float:
        return self.first.gram_lower_bound() + self.second.gram_lower_bound()


def vstack(*operators: LinearOperator) -> LinearOperator:
    """Stack operators with one domain on top of each other; the range is flat, in the order given.

    Parameters
    ----------
    operators: of one domain; a single one is itself.

    Raises
    ------
    OperatorError: no operators, or something else.

    Examples
    --------
    >>> lr.vstack(lr.operators.Identity((1, 4, 4)), lr.operators.Inpainting(torch.ones(1, 4, 4))).range_shape
    (32,)
    """
    if not operators or not all(isinstance(operator, LinearOperator) for operator in operators):
        raise OperatorError("vstack(*operators) needs at least one operator, and LinearOperators only.", "vstack")
    result = operators[0]
    for operator in operators[1:]:
        result = VStack(result, operator)
    return result
