"""Noise levels of the samples of a training run: whether the problem uses them, and how they weight the loss."""

from __future__ import annotations

from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.losses import UpperLoss
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.training.options import NOISE_WEIGHTINGS

__all__ = ["check_levels", "weighted"]


def weighted(loss: UpperLoss, weighting: str, sigma: float | None) -> UpperLoss:
    """The loss of samples of one noise level, over the power of sigma that the weighting says."""
    power = NOISE_WEIGHTINGS[weighting]
    return loss if sigma is None or power == 0 else loss.scaled(sigma**-power)


def check_levels(problem: LowerLevelProblem, level: float | None, weighting: str) -> None:
    """ConfigError where samples have a noise level that the problem does not use, the problem has one for each sample
    of a batch, or losses are to be weighted by levels that samples do not have."""
    if isinstance(problem.noise_level, Tensor):
        raise ConfigError(
            "train: the problem has a noise level for each sample of a batch, but batches are drawn; leave it out, and "
            "pass samples (b, x_true, sigma)."
        )
    if level is None:
        if weighting != "none":
            raise ConfigError(
                f"train(noise_weighting={weighting!r}): samples are pairs (b, x_true) without a noise level; pass "
                "triples (b, x_true, sigma)."
            )
        return
    kind = type(problem.regularizer).__name__
    if problem.noise_level is not None:
        raise ConfigError(
            f"train: the problem has noise_level={problem.noise_level} and the samples bring their own, sigma="
            f"{level:g}; leave one of them out."
        )
    if problem.regularizer.at(level) is problem.regularizer:
        raise ConfigError(
            f"train: samples are (b, x_true, sigma), but {kind} does not depend on the noise level; pass pairs "
            "(b, x_true), or a regularizer that does, such as RidgeRegularizer(noise_conditioned=True)."
        )
