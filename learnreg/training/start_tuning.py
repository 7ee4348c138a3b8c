"""Where a training run starts: the regularizer as given, times the factor that suits the data best."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from learnreg.errors import AssumptionError
from learnreg.solvers.solve import solve
from learnreg.training.samples import stacked
from learnreg.training.session import Chunk, Session

__all__ = ["least_loss", "tune_start"]

_SAMPLES = 4
_STEP, _LARGEST_SEARCH = 2.0, 12
_TOLERANCE = 1e-2  # of root-mean-square images: losses of different factors differ by far more


def least_loss(loss: Callable[[float], float], start: float, step: float, largest: int = _LARGEST_SEARCH) -> float:
    """The logarithm of a factor with the least loss: steps until they bracket it, at most ``largest`` of them, then the
    vertex of the parabola through the bracket, unless a point that was tried is better."""
    found: dict[float, float] = {}

    def known(t: float) -> float:
        if t not in found:
            found[t] = loss(t)
        return found[t]

    middle = start
    for _ in range(largest):
        best = min((middle, middle - step, middle + step), key=known)
        if best == middle:
            break
        middle = best
    low, high = known(middle - step) - known(middle), known(middle + step) - known(middle)
    if math.isfinite(low + high) and low + high > 0:
        known(middle + 0.5 * step * (low - high) / (low + high))
    return min(found, key=found.__getitem__)


@torch.no_grad()
def tune_start(session: Session) -> float:
    """Multiply the regularizer of a session by the factor with the least loss on a few samples, and return it; 1.0
    where it has no learnable scale, or where no factor has a finite loss. Reconstructions are rough: an *estimate*."""
    scales = [p for p in session.problem.regularizer.scale_parameters() if p.requires_grad]
    samples = session.source.first(_SAMPLES)
    if not scales:
        return 1.0
    given = [p.clone() for p in scales]
    starts: dict[int, Tensor] = {}
    size = max(math.sqrt(float(torch.stack([s.x_true.double().square().mean() for s in samples]).mean())), 1e-30)

    def evaluate(item: tuple[int, Chunk]) -> float:
        number, chunk = item
        b, x_true = stacked(chunk.samples)
        found = solve(chunk.frozen, b, _TOLERANCE * size, start=starts.get(number))
        starts[number] = found.x
        return len(b) / len(samples) * float(session.loss(x_true).value(found.x))

    def loss(log_factor: float) -> float:
        for p, value in zip(scales, given, strict=True):
            p.copy_(value + log_factor)
        try:
            total = sum(session.workers.map(evaluate, list(enumerate(session.chunks(samples)))))
        except AssumptionError:
            return math.inf
        return total if math.isfinite(total) else math.inf

    best = 0.0
    try:
        best = least_loss(loss, 0.0, math.log(_STEP))
    finally:
        for p, value in zip(scales, given, strict=True):
            p.copy_(value + best)
    return math.exp(best)
