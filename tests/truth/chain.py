"""The truth about chains of reweighted problems: the dense problems of ``truth.matrices`` with weights of places, and
the weights by formulas written out again."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from truth.draw import DOUBLE
from truth.matrices import Dense

import learnreg as lr
from learnreg.regularizers import Reweighted

__all__ = ["DenseChain", "chain_gradient_of", "chain_of", "chain_weights"]


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

    def sizes(self, x: Tensor) -> Tensor:
        """Of responses, or of groups of them."""
        t = (x @ self.K.T).reshape(-1, *self.range_shape)
        return t.abs() if self.densities(x).shape == t.shape else t.norm(dim=1, keepdim=True)


def chain_weights(R: Reweighted, dense: DenseChain, x: Tensor) -> Tensor:
    """M(x), (batch, *places)."""
    level = dense.problem.noise_level
    ratio = 1.0 if level is None or R.base.conditioned(1.0) is R.base else float(level) * 255.0 / 25.0
    with torch.no_grad():
        numbers = {name: p.detach().double() for name, p in R.weights.named_parameters()}
        conv = torch.nn.functional.conv2d
        if "log_scale" in numbers:
            powers = ratio ** numbers["scale_exponents"] if "scale_exponents" in numbers else 1.0
            s = (powers * numbers["log_scale"].exp())[:, None, None]
            if "second" in numbers:
                h, half = (
                    torch.hypot(torch.ones(()).double(), dense.sizes(x) / s) - 1.0,
                    numbers["second"].shape[-1] // 2,
                )
                return 1.0 / (1.0 + torch.exp(-conv(h, numbers["second"], numbers["second_bias"], padding=half)))
            u = dense.densities(x)
            if "logits" not in numbers:
                return 1.0 / (1.0 + u / s)
            B = numbers["logits"].flatten().softmax(0).reshape(numbers["logits"].shape)
            return _over(B.flip(0, 1), 1.0 / (1.0 + _over(B, u) / s))
        image = x.reshape(-1, *dense.problem.operator.domain_shape) / ratio
        half = numbers["first"].shape[-1] // 2
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


@torch.enable_grad()
def chain_gradient_of(problem: lr.LowerLevelProblem, b: Tensor, loss: lr.UpperLoss) -> dict[str, Tensor]:
    """The exact hypergradient of a chain of least squares: dense Hessians and all derivatives by autograd of the energy
    with weights."""
    R, A, b = problem.active_regularizer, problem.operator, b.to(DOUBLE)
    assert isinstance(R, Reweighted)
    learned = problem.learnable()
    terms = R.base.saddle_terms(A.domain_shape)
    terms = replace(terms, potential=terms.potential.to(DOUBLE))
    iterates = [x.reshape(len(b), *A.domain_shape) for x in chain_of(problem, b)]
    lower, upper = (-math.inf, math.inf) if problem.constraint is None else problem.constraint.bounds_for(iterates[0])

    def energy(x: Tensor, w: Tensor | float) -> Tensor:
        residual = A(x) - b
        densities = w * terms.potential.density(terms.operator(x))
        return 0.5 * (residual**2).sum() + 0.5 * float(problem.ridge) * (x**2).sum() + densities.sum()

    def weights(x: Tensor) -> Tensor:
        return R.weights.of(terms, x, terms.operator(x))

    total = {name: torch.zeros_like(p, dtype=DOUBLE) for name, p in learned.items()}

    def add(scalar: Tensor) -> None:
        found = torch.autograd.grad(scalar, list(learned.values()), allow_unused=True, retain_graph=True)
        for name, g in zip(learned, found, strict=True):
            total[name] += 0.0 if g is None else g

    v = loss.gradient(iterates[-1])
    for k in reversed(range(len(iterates))):
        x = iterates[k].detach().requires_grad_()
        places = torch.ones(1, dtype=DOUBLE) if k == 0 else weights(iterates[k - 1]).detach().requires_grad_()
        (slope,) = torch.autograd.grad(energy(x, places), x, create_graph=True)
        rows = [torch.autograd.grad(g, x, retain_graph=True)[0].flatten(1) for g in slope.flatten(1).sum(0)]
        H, free = torch.stack(rows, 1), ((x > lower) & (x < upper)).flatten(1).detach()
        H = torch.where(free[:, :, None] & free[:, None, :], H, torch.eye(H.shape[1], dtype=DOUBLE))
        X = torch.linalg.solve(H, torch.where(free, -v.flatten(1), 0.0)).reshape(x.shape)
        pairing = (slope * X).sum()
        add(pairing)
        if k:
            (p,) = torch.autograd.grad(pairing, places, retain_graph=True)
            before = iterates[k - 1].detach().requires_grad_()
            through = (weights(before) * p).sum()
            add(through)
            (v,) = torch.autograd.grad(through, before)
    return total
