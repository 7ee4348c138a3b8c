"""The truth about chains of reweighted problems: the dense problems of ``truth.matrices`` with weights of places, and
the weights by formulas written out again."""

from __future__ import annotations

import torch
from torch import Tensor
from truth.draw import DOUBLE
from truth.matrices import Dense

import learnreg as lr
from learnreg.regularizers import Reweighted

__all__ = ["DenseChain", "chain_of", "chain_weights"]


class DenseChain(Dense):
    """One problem of a chain, with weights of places (batch, *places)."""

    places: Tensor | None = None

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, slope, second = super().derivatives(t)
        if self.places is None:
            return value, slope, second
        w = self.places
        return w * value, w * slope, (w if second.dim() == t.dim() else w[:, None]) * second

    def densities(self, x: Tensor) -> Tensor:
        return super().derivatives((x @ self.K.T).reshape(-1, *self.range_shape))[0]


def chain_weights(R: Reweighted, dense: DenseChain, x: Tensor) -> Tensor:
    """M(x), (batch, *places)."""
    with torch.no_grad():
        numbers = {name: p.detach().double() for name, p in R.weights.named_parameters()}
        if "log_scale" in numbers:
            u = dense.densities(x)
            s = numbers["log_scale"].exp()[:, None, None]
            if "logits" not in numbers:
                return 1.0 / (1.0 + u / s)
            B = numbers["logits"].flatten().softmax(0).reshape(numbers["logits"].shape)
            return _over(B.flip(0, 1), 1.0 / (1.0 + _over(B, u) / s))
        image = x.reshape(-1, *dense.problem.operator.domain_shape)
        conv, half = torch.nn.functional.conv2d, numbers["first"].shape[-1] // 2
        first = conv(image, numbers["first"], numbers["first_bias"], padding=half)
        features = torch.log1p(torch.exp(first))
        return 1.0 / (1.0 + torch.exp(-conv(features, numbers["second"], numbers["second_bias"], padding=half)))


def _over(B: Tensor, u: Tensor) -> Tensor:
    """Correlation with B over zeros beyond the border, shift by shift."""
    half, (height, width) = B.shape[0] // 2, u.shape[-2:]
    padded = torch.nn.functional.pad(u, (half,) * 4)
    shifts = [(i, j) for i in range(len(B)) for j in range(len(B))]
    return sum((B[i, j] * padded[..., i : i + height, j : j + width] for i, j in shifts), torch.zeros_like(u))


@torch.no_grad()
def chain_of(problem: lr.LowerLevelProblem, b: Tensor, steps: int | None = None) -> list[Tensor]:
    """The iterates of the exact chain to rounding, (batch, n) each; ``steps`` instead of the regularizer's."""
    R = problem.regularizer
    assert isinstance(R, Reweighted)
    dense = DenseChain(problem, b.to(DOUBLE))
    iterates = [dense.solve()[0]]
    for _ in range(steps or R.steps or 0):
        dense.places = chain_weights(R, dense, iterates[-1])
        iterates.append(dense.solve(iterates[-1])[0])
    return iterates
