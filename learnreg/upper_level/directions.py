"""Directions of upper-level steps: scaled gradients, and limited-memory quasi-Newton ones in the same metric.

Parameter groups (filters, weights, smoothings) have units of their own, and curvatures that differ by orders within a
group. The metric <p, W p> weights each parameter by the root of the running mean of its squared gradient, as Adam
does, at least by a hundredth of its group's ("parameters"), or each group by that of its root mean square ("groups"),
so that the scaled gradient W^-1 z moves all of them at comparable speed. L-BFGS starts from gamma W^-1.

Source: Nocedal, Updating quasi-Newton matrices with limited storage (1980); Barzilai and Borwein, Two-point step size
gradient methods (1988). Damping pairs towards W, after Powell, was tried: it hides the small curvatures that matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SCALINGS", "Directions", "Flat"]

SCALINGS = ("parameters", "groups", "none")

_KEPT, _KEPT_SQUARES = 0.7, 0.9
_LEAST_WEIGHT = 1e-2
_LEAST_CURVATURE = 1e-3


class Flat:
    """Parameters, and gradients by their names, as vectors in float64."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.sizes = [p.numel() for p in self.parameters.values()]

    def point(self) -> Tensor:
        """The parameters now."""
        return _joined([p.detach().double().flatten() for p in self.parameters.values()])

    def vector(self, gradient: Mapping[str, Tensor]) -> Tensor:
        """A gradient as a vector."""
        return _joined([gradient[name].double().flatten() for name in self.parameters])

    @torch.no_grad()
    def move_to(self, point: Tensor) -> None:
        """Write a vector into the parameters."""
        for p, part in zip(self.parameters.values(), self.groups(point), strict=True):
            p.copy_(part.view_as(p))

    def groups(self, vector: Tensor) -> tuple[Tensor, ...]:
        """The part of each parameter."""
        return torch.split(vector, self.sizes)

    def norms(self, vector: Tensor) -> list[float]:
        """Root mean square of each group."""
        return [float(part.norm()) / math.sqrt(max(part.numel(), 1)) for part in self.groups(vector)]

    def spread(self, values: list[float], like: Tensor) -> Tensor:
        """One number for each group, as a vector."""
        return _joined([like.new_full((n,), v) for n, v in zip(self.sizes, values, strict=True)])


def _joined(parts: list[Tensor]) -> Tensor:
    """One vector; an empty one where nothing is learnable."""
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


class Directions:
    """Directions p with <z, p> > 0 for a gradient z; a step is theta - alpha p.

    memory: pairs of steps and gradient changes that quasi-Newton directions use; 0: none. scaling: one of ``SCALINGS``;
    "none" is the metric W = 1.
    """

    def __init__(self, memory: int, scaling: str) -> None:
        self.memory, self.scaling = memory, scaling
        self._scales: list[float] = []
        self._squares: Tensor | None = None
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def observe(self, flat: Flat, z: Tensor) -> None:
        """Let the metric follow a gradient."""
        if self._squares is None:
            self._squares = z * z
        self._squares = _KEPT_SQUARES * self._squares + (1.0 - _KEPT_SQUARES) * z * z
        norms = flat.norms(z)
        known = self._scales or norms
        # a group whose gradient vanishes keeps its scale, or else gets that of the others
        largest = max(norms, default=0.0) or 1.0
        mixed = [_KEPT * old + (1.0 - _KEPT) * new for old, new in zip(known, norms, strict=True)]
        self._scales = [m if m > 0 else largest for m in mixed]

    def metric(self, flat: Flat, like: Tensor) -> Tensor:
        """The diagonal of W."""
        if self.scaling == "none":
            return torch.ones_like(like)
        groups = flat.spread(self._scales, like)
        if self.scaling == "groups" or self._squares is None:
            return groups
        return self._squares.sqrt() + _LEAST_WEIGHT * groups

    def scaled(self, flat: Flat, z: Tensor) -> Tensor:
        """W^-1 z."""
        return z / self.metric(flat, z)

    def quasi_newton(self, flat: Flat, z: Tensor) -> Tensor | None:
        """The two-loop recursion from gamma W^-1; None without pairs, or where rounding leaves no direction."""
        if not self._pairs:
            return None
        metric, p, alphas = self.metric(flat, z), z.clone(), []
        for s, y in reversed(self._pairs):
            alphas.append(float(s @ p) / float(s @ y))
            p = p - alphas[-1] * y
        s, y = self._pairs[-1]
        p = p * (float(s @ y) / float(y @ (y / metric))) / metric
        for (s, y), alpha in zip(self._pairs, reversed(alphas), strict=True):
            p = p + (alpha - float(y @ p) / float(s @ y)) * s
        return p if float(z @ p) > 0 and bool(torch.isfinite(p).all()) else None

    def uncertainty(self, flat: Flat, gradients: Sequence[Tensor]) -> float:
        """The variance of the mean of these gradients in the metric of the direction, an *estimate*: what another draw
        would change of the predicted decrease <z, p>."""
        mean = torch.stack(list(gradients)).mean(0)
        total = 0.0
        for g in gradients:
            p = self.quasi_newton(flat, g - mean)
            total += float((g - mean) @ (self.scaled(flat, g - mean) if p is None else p))
        return total / (len(gradients) * (len(gradients) - 1))

    def learn(self, flat: Flat, s: Tensor, y: Tensor) -> None:
        """Keep a pair whose curvature <s, y> is clearly positive: gradients are not exact."""
        metric = self.metric(flat, s)
        lengths = math.sqrt(float(s @ (s * metric)) * float(y @ (y / metric)))
        if self.memory and math.isfinite(lengths) and float(s @ y) > _LEAST_CURVATURE * lengths:
            self._pairs = [*self._pairs, (s, y)][-self.memory :]

    def barzilai_borwein(self, flat: Flat) -> float | None:
        """<s, W s>/<s, y> of the newest pair."""
        if not self._pairs:
            return None
        s, y = self._pairs[-1]
        return float(s @ (s * self.metric(flat, s))) / float(s @ y)

    def length(self, flat: Flat, step: Tensor) -> float:
        """Of a step in the metric, over the one that moves every parameter by 1."""
        metric = self.metric(flat, step)
        return math.sqrt(float(step @ (step * metric)) / float(metric.sum()))

    def forget(self) -> None:
        """Drop the pairs."""
        self._pairs = []

    def state_dict(self) -> dict[str, Any]:
        """What later directions depend on."""
        return {"scales": list(self._scales), "squares": self._squares, "pairs": list(self._pairs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as after ``state_dict``."""
        self._scales, self._squares = list(state["scales"]), state["squares"]
        self._pairs = [(s, y) for s, y in state["pairs"]]
