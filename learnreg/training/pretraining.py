"""Cheap pretraining by score matching: one gradient step with the regularizer is to denoise the ground truths.

    min over theta of E ‖y - ∇R(y; theta) - x‖²,   y = x + s n,

n standard normal and s small: no lower-level problem is solved. With X = ∇R(y) + x - y its gradient is 2
∂_theta <∇R(y; theta), X>, the pairing that hypergradients are formed from. R is then stretched and multiplied to suit
the task, R(x) -> f c² R(x/c), by the loss of the training run on a few samples. Nothing here is certified.

Source: score-based pretraining of learned regularizers as in Hertrich et al., "Learning regularization functionals for
inverse problems: a comparative study" (2025); the denoising score matching of Vincent (Neural Computation 23, 2011).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.losses import SquaredError
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.pairing import evaluate_pairing
from learnreg.lower_level.point import Point
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.operators import Identity
from learnreg.progress import Count
from learnreg.training.samples import Sample
from learnreg.training.schedule import step_factor
from learnreg.training.session import Session
from learnreg.training.start_tuning import least_loss, tuned_factor

__all__ = ["pretrain"]

_NOISE = 0.12
"""s, in units of the root mean square by which images differ from their means: .03 of photographs in [0, 1]."""
_POOL, _BATCH = 512, 16
_STEP = 0.02
_STRETCH, _MOST_STRETCHES, _FIRST_STRETCHES = 0.5, 6, range(-2, 7)


def pretrain(session: Session, steps: int, seed: int) -> None:
    """So many steps of Adam, and the stretch of R with the least loss; all of it, or nothing, so that a run that was
    interrupted here begins again with the same bits.

    Raises
    ------
    ConfigError: a chain of problems, a regularizer with latent variables or without a gradient, or several workers.
    """
    if obstacle := _obstacle(session):
        raise ConfigError(f"pretraining={steps}: {obstacle}.")
    samples = session.source.first(_POOL)
    if not all(sample.is_here for sample in samples):
        raise ConfigError(f"pretraining={steps}: it runs in one worker; run it alone, and start from that model.")
    learned = session.problem.learnable().values()
    given = [p.detach().clone() for p in learned]
    try:
        _match_scores(session, samples, steps, torch.Generator().manual_seed(seed))
        _stretch(session)
    except BaseException:
        with torch.no_grad():
            for p, value in zip(learned, given, strict=True):
                p.copy_(value)
        raise


def _obstacle(session: Session) -> str:
    """Why there is no gradient step with the regularizer; "" where there is."""
    regularizer, name = session.problem.regularizer, type(session.problem.regularizer).__name__
    if regularizer.chain() is not None:
        return f"{name} stands for a chain of problems; pretrain the regularizer that it weighs, and start from that"
    terms = session.problem.frozen().fixed
    if terms.latent.channels:
        return f"{name} has latent variables, so that its gradient is a problem of its own"
    return "" if terms.potential.differentiable else f"{name} has no gradient where responses vanish"


def _match_scores(session: Session, samples: list[Sample], steps: int, generator: torch.Generator) -> None:
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for sample in samples:
        by_shape.setdefault(sample.x_true.shape, []).append(sample.x_true)
    regularizer, truths = session.problem.regularizer, [torch.stack(group) for group in by_shape.values()]
    problems = [LowerLevelProblem(Identity(tuple(shape)), regularizer, minimiser="local") for shape in by_shape]
    learned = problems[0].learnable()
    spread = math.sqrt(sum(float(_deviations(x).sum()) for x in truths) / sum(len(x) for x in truths))
    optimizer = torch.optim.Adam(learned.values(), lr=_STEP)
    shares = torch.tensor([float(len(x)) for x in truths])

    def drawn(which: int) -> tuple[Tensor, Tensor]:
        """Ground truths and noisy ones."""
        x = truths[which][torch.randint(len(truths[which]), (_BATCH,), generator=generator)]
        return x, x + _NOISE * spread * torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x)

    _begin(problems[0], *drawn(0))
    with Count("steps of score matching", steps) as count:
        for k in range(steps):
            session.clock.check()
            which = int(torch.multinomial(shares, 1, generator=generator))
            problem, (x, y) = problems[which], drawn(which)
            _, gradient = _score_loss(problem, x, y)
            for name, p in learned.items():
                p.grad = gradient[name].to(p) / len(x)
            for setting in optimizer.param_groups:
                setting["lr"] = _STEP * step_factor(k, steps)
            optimizer.step()
            problem.project_()
            count.update()
    for p in learned.values():
        p.grad = None


def _deviations(x: Tensor) -> Tensor:
    """Mean squares about the means of images, (batch,)."""
    flat = x.double().flatten(1)
    return (flat - flat.mean(1, keepdim=True)).square().mean(1)


def _score_loss(problem: LowerLevelProblem, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """½ ‖y - ∇R(y) - x‖² and its gradient, of the batch."""
    frozen = problem.frozen()
    instance = frozen.at(y)
    residual = _slope(instance, y) + x - y
    gradient, _ = evaluate_pairing(Point(frozen, instance, y, SquaredError(x), y, residual))
    return 0.5 * residual.double().square().sum(), gradient


class _Balance:
    """The parameters of R that stretch and multiply it, R(x) -> f c² R(x/c), by the logarithms of c and f."""

    def __init__(self, problem: LowerLevelProblem) -> None:
        regularizer, roles = problem.regularizer, problem.regularizer.parameter_roles()
        self.smoothings = [
            p
            for name, p in regularizer.named_parameters()
            # exponents of the noise level have the roles of what they are exponents of
            if roles.get(name) == "log_smoothing" and not name.endswith("_exponents") and p.requires_grad
        ]
        self.scales = [p for p in regularizer.scale_parameters() if p.requires_grad]
        self.given = [p.detach().clone() for p in (*self.smoothings, *self.scales)]

    @torch.no_grad()
    def set(self, log_c: float, log_factor: float) -> None:
        for p, value in zip((*self.smoothings, *self.scales), self.given, strict=True):
            p.copy_(value + log_c)
        for p in self.scales:
            p.add_(log_factor)


@torch.no_grad()
def _begin(problem: LowerLevelProblem, x: Tensor, y: Tensor) -> None:
    """At the balance for which one gradient step denoises best; the factor of each stretch in closed form. A step with
    a regularizer of curvatures far above 1 makes noise, from which training by steps takes long."""
    balance, found = _Balance(problem), (math.inf, 0.0, 0.0)
    if not balance.scales:
        return
    for k in _FIRST_STRETCHES if balance.smoothings else (0,):
        balance.set(_STRETCH * k, 0.0)
        slope, away = _slope(problem.frozen().at(y), y).double(), (y - x).double()
        factor = float((slope * away).sum() / (slope * slope).sum().clamp_min(1e-300))
        loss = float((away - factor * slope).square().sum())
        if factor > 0 and loss < found[0]:
            found = loss, _STRETCH * k, math.log(factor)
    balance.set(*found[1:])


def _stretch(session: Session) -> None:
    """By the factor c with the least loss of the training run, R multiplied by the best factor for each; nothing, where
    R has no smoothing or no scale."""
    balance = _Balance(session.problem)
    factors: dict[float, float] = {}
    if not balance.smoothings or not balance.scales:
        return

    def loss(log_c: float) -> float:
        start = factors[min(factors, key=lambda known: abs(known - log_c))] if factors else 0.0
        balance.set(log_c, start)
        log_factor, found = tuned_factor(session, balance.scales)
        factors[log_c] = start + log_factor
        return found

    best = least_loss(loss, 0.0, _STRETCH, _MOST_STRETCHES)
    balance.set(best, factors.get(best, 0.0))


@torch.no_grad()
def _slope(instance: Instance, y: Tensor) -> Tensor:
    """∇R(y)."""
    return instance.adjoint(instance.potential.grad(instance.apply(y)))
