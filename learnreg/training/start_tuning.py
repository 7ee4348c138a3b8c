"""Where a training run starts: the regularizer as given, times the factor that suits the data best, and then with
better weights of its filters."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from learnreg.errors import AssumptionError, SolverError
from learnreg.progress import Count
from learnreg.solvers.solve import solve
from learnreg.training.samples import stacked
from learnreg.training.session import Chunk, Session

__all__ = ["least_loss", "tune_start", "tuned_factor"]

_SAMPLES, _WEIGHING_SAMPLES = 4, 8
_WEIGHING_STEPS, _WEIGHING_GRADIENTS = 12, 16
_UNIT = 10.0  # of losses, so that the first step of L-BFGS does not depend on theirs
_STEP = 2.0
_WIDEST, _LARGEST_SEARCH = 8, 20
_MOST_STEPS = 20
"""Factors from 1e-6 to 1e6."""
_FLAT = 1e-2
_TOLERANCE = 1e-2  # of root-mean-square images: losses of different factors differ by far more


def least_loss(loss: Callable[[float], float], start: float, step: float, most: float = math.inf) -> float:
    """The logarithm of a factor with the least loss. Steps go downhill until they bracket it; where the loss hardly
    changes they become up to eight times as long, and short again at the minimum. Then comes the vertex of the parabola
    through the bracket, unless a point that was tried is better. No factor is more than ``most`` steps away."""
    found: dict[int, float] = {}

    def known(k: int) -> float:
        if abs(k) > most:
            return math.inf
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


def tune_start(session: Session) -> float:
    """Multiply the regularizer of a session by the factor with the least loss on a few samples, and return it; then
    improve its weights by a few steps of L-BFGS in their logarithms alone. 1.0 where it has no learnable scale, or
    where no factor has a finite loss. Reconstructions are rough: an *estimate*."""
    scales = [p for p in session.problem.regularizer.scale_parameters() if p.requires_grad]
    if not scales:
        return 1.0
    factor = math.exp(tuned_factor(session, scales)[0])
    if sum(p.numel() for p in scales) > 1:
        _weigh(session, scales)
    return factor


def _weigh(session: Session, scales: list[nn.Parameter]) -> None:
    """Lower the loss on a few samples in the weights; they are those with the least loss that was seen."""
    samples = session.source.first(_WEIGHING_SAMPLES)
    names = {id(p): name for name, p in session.problem.learnable().items()}
    seen: list[tuple[float, list[Tensor]]] = []

    def closure() -> Tensor:
        found = session.evaluate(samples)
        count.update(f"loss {found.loss:.4g}")
        seen.append((found.loss, [p.detach().clone() for p in scales]))
        unit = _UNIT / max(seen[0][0], 1e-300)
        for p in scales:
            p.grad = unit * found.gradient[names[id(p)]]
        return torch.tensor(unit * found.loss)

    steps = torch.optim.LBFGS(
        scales,
        lr=1.0,
        max_iter=_WEIGHING_STEPS,
        max_eval=_WEIGHING_GRADIENTS,
        tolerance_grad=0.0,
        tolerance_change=-1.0,  # a line search that fails for the roughness of losses is no end
        line_search_fn="strong_wolfe",
    )
    try:
        with Count("initial weights tried", None) as count:
            session.evaluate(samples)  # losses of a cold start are too rough for the line search
            steps.step(closure)  # type: ignore[no-untyped-call]
    except (AssumptionError, SolverError):
        pass  # a trial point too far away
    finally:
        if seen:
            with torch.no_grad():
                for p, value in zip(scales, min(seen, key=lambda s: s[0])[1], strict=True):
                    p.copy_(value)


@torch.no_grad()
def tuned_factor(session: Session, scales: list[nn.Parameter]) -> tuple[float, float]:
    """Find the best factor, and multiply by it; its logarithm, and the loss, an *estimate*."""
    samples = session.source.first(_SAMPLES)
    given = [p.clone() for p in scales]
    starts: dict[int, Tensor] = {}
    size = max(math.sqrt(float(torch.stack([s.x_true.double().square().mean() for s in samples]).mean())), 1e-30)

    tolerance = _TOLERANCE * size
    flattened, as_constants = math.inf, math.inf
    losses: dict[float, float] = {}

    def evaluate(item: tuple[int, Chunk]) -> tuple[float, bool]:
        number, chunk = item
        b, x_true = stacked(chunk.samples)
        x = starts[number] = solve(chunk.frozen, b, tolerance, start=starts.get(number)).x
        flat = bool((x.flatten(1).std(1, correction=0) <= tolerance).all())
        return len(b) / len(samples) * float(session.loss_of(chunk.samples, x_true).value(x)), flat

    def loss(log_factor: float) -> float:
        nonlocal flattened, as_constants
        if log_factor > flattened:
            return as_constants  # a larger factor changes nothing any more, and its problems are the slowest
        for p, value in zip(scales, given, strict=True):
            p.copy_(value + log_factor)
        try:
            chunks = list(enumerate(session.chunks(samples)))
            found = session.group.map(session.workers.map, evaluate, chunks, lambda result: result)
        except AssumptionError:
            return math.inf
        total = sum(part for part, _ in found)
        count.update(f"loss {total:.4g}")
        if all(flat for _, flat in found):
            flattened, as_constants = log_factor, total
        losses[log_factor] = total if math.isfinite(total) else math.inf
        return losses[log_factor]

    best = 0.0
    try:
        with Count("factors of the regularizer tried", None) as count:
            best = least_loss(loss, 0.0, math.log(_STEP), _MOST_STEPS)
        if best >= flattened:
            warnings.warn(
                "train: of the factors tried for the regularizer the best makes constants of the first images (are "
                f"they constant, or other images than the measurements show?); training starts at {math.exp(best):.0e} "
                "times what was given. tune=False starts from it as it is.",
                stacklevel=2,
            )
    finally:
        for p, value in zip(scales, given, strict=True):
            p.copy_(value + best)
    return best, losses.get(best, math.inf)
