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
_STEP = 2.0
_WIDEST, _LARGEST_SEARCH = 8, 20
_FLAT = 1e-2
_TOLERANCE = 1e-2  # of root-mean-square images: losses of different factors differ by far more


def least_loss(loss: Callable[[float], float], start: float, step: float) -> float:
    """The logarithm of a factor with the least loss. Steps go downhill until they bracket it; where the loss hardly
    changes they become up to eight times as long, and short again at the minimum. Then comes the vertex of the parabola
    through the bracket, unless a point that was tried is better."""
    found: dict[int, float] = {}

    def known(k: int) -> float:
        if k not in found:
            found[k] = loss(start + k * step)
        return found[k]

    middle, width, wide_enough = 0, 1, False
    for _ in range(_LARGEST_SEARCH):
        best = min((middle, middle - width, middle + width), key=known)
        rise = max(known(middle - width), known(middle + width)) - known(middle)
        if best != middle:
            middle = best
        elif not wide_enough and width < _WIDEST and rise <= _FLAT * known(middle):
            width *= 2
        elif width > 1:
            width, wide_enough = width // 2, True
        else:
            break
    low, high = known(middle - 1) - known(middle), known(middle + 1) - known(middle)
    best = min(found, key=found.__getitem__)
    if not (math.isfinite(low + high) and low + high > 0):
        return start + best * step
    vertex = start + step * (middle + 0.5 * (low - high) / (low + high))
    if vertex == start + best * step or not loss(vertex) < found[best]:
        return start + best * step
    return vertex


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
