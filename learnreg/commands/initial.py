"""The regularizer that a training run starts from, from its options."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from learnreg.commands.options import TrainingConfig
from learnreg.errors import ConfigError
from learnreg.potentials import potential_from_config
from learnreg.regularizers import (
    FieldsOfExperts,
    InputConvexNetwork,
    LearnedTotalGeneralizedVariation,
    LearnedTotalVariation,
    MultivariateExperts,
    Regularizer,
    RidgeRegularizer,
    TotalVariation,
)

__all__ = ["initial_regularizer"]

_RIDGE_WEIGHT, _GROUPED_WEIGHT, _NETWORK_WEIGHT = 0.5, 0.4, 0.4
"""Initial weights relative to a field of experts."""

_DIFFERENCES = 3.0
"""Sum of the initial weights of a field of experts, over the weight of a total variation that smooths as much."""

_RIDGE_SPACING = 2.0
"""Distance of a ridge regularizer's knots in initial smoothings of a field of experts: with ten of them f'' reaches the
responses to noise."""


def initial_regularizer(config: TrainingConfig) -> Regularizer:
    """The regularizer that training starts from.

    Raises
    ------
    ConfigError: options that do not fit together.
    """
    generator = torch.Generator().manual_seed(config.seed)
    return _BUILDERS[config.regularizer](config, generator)


def _fields_of_experts(config: TrainingConfig, generator: torch.Generator) -> Regularizer:
    potential = type(potential_from_config(config.potential))(config.smoothing, config.weight)
    return FieldsOfExperts(
        config.filters,
        config.filter_side,
        potential,
        boundary=config.boundary,  # type: ignore[arg-type]
        minimum_smoothing=config.minimum_smoothing,
        generator=generator,
    )


def _total_variation(config: TrainingConfig, generator: torch.Generator) -> Regularizer:
    return TotalVariation(weight=config.weight / _DIFFERENCES)


def _interpolated(
    kind: type[LearnedTotalVariation] | type[LearnedTotalGeneralizedVariation],
    config: TrainingConfig,
    generator: torch.Generator,
) -> Regularizer:
    return kind(
        config.positions,
        config.filter_side,
        weight=config.weight / _DIFFERENCES,
        smoothing=config.smoothing,
        generator=generator,
    )


def _multivariate(config: TrainingConfig, generator: torch.Generator) -> Regularizer:
    if config.filters % config.group_size:
        raise ConfigError(
            f"filters={config.filters}, group_size={config.group_size}: expected whole groups; choose a multiple."
        )
    return MultivariateExperts(
        config.filters // config.group_size,
        config.group_size,
        config.filter_side,
        _GROUPED_WEIGHT * config.weight,
        config.smoothing,
        boundary=config.boundary,  # type: ignore[arg-type]
        minimum_smoothing=config.minimum_smoothing,
        generator=generator,
    )


def _ridge(config: TrainingConfig, generator: torch.Generator) -> Regularizer:
    return RidgeRegularizer(
        convexity=config.convexity,  # type: ignore[arg-type]
        nonconvexity=config.nonconvexity,
        weight=_RIDGE_WEIGHT * config.weight,
        smoothing=_RIDGE_SPACING * config.smoothing,
        generator=generator,
    )


def _network(config: TrainingConfig, generator: torch.Generator) -> Regularizer:
    form: Any = config.form
    return InputConvexNetwork(
        features=config.features,
        layers=config.layers,
        size=config.filter_side,
        form=form,
        weight=_NETWORK_WEIGHT * config.weight,
        smoothing=config.smoothing,
        minimum_smoothing=config.minimum_smoothing,
        generator=generator,
    )


_BUILDERS: dict[str, Callable[[TrainingConfig, torch.Generator], Regularizer]] = {
    "fields-of-experts": _fields_of_experts,
    "tv": _total_variation,
    "ridge": _ridge,
    "multivariate": _multivariate,
    "learned-tv": partial(_interpolated, LearnedTotalVariation),
    "learned-tgv": partial(_interpolated, LearnedTotalGeneralizedVariation),
    "icnn": _network,
}
