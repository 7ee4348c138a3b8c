"""Random input-convex networks for the hunt: one to three layers, from nearly piecewise linear to smooth."""

from __future__ import annotations

import torch
from truth.draw import Draw

from learnreg.regularizers import InputConvexNetwork

__all__ = ["input_convex_network", "lifted_network"]


def input_convex_network(draw: Draw, shape: tuple[int, int, int], smoothing: float) -> InputConvexNetwork:
    """With all parameters away from their start, some connections next to nothing, some parameters frozen."""
    features, layers = draw.integer(1, 5), draw.integer(1, 3)
    result = InputConvexNetwork(
        1,
        features,
        layers,
        draw.integer(2, 4),
        mixing_size=draw.choice(1, 3),  # type: ignore[arg-type]
        weight=features * draw.scale(),
        smoothing=smoothing,
        minimum_smoothing=smoothing * draw.uniform(0.0, 0.9) if draw.chance(0.3) else 0.0,
        generator=draw.generator,
    ).double()
    with torch.no_grad():
        for p in result.parameters():
            p.add_(draw.uniform(0.0, 0.7) * draw.normal(*p.shape))
        result.filters.mul_(draw.scale())
        result.biases.mul_(draw.log_uniform(1e-3, 1.0))
        if layers > 1:
            result.log_mixing.add_(draw.uniform(-2.0, 2.0) * draw.rand(*result.log_mixing.shape))
            if draw.chance(0.3):
                result.log_mixing[draw.rand(*result.log_mixing.shape) > 0.7] = -30.0
    if draw.chance(0.4):
        for p in result.parameters():
            p.requires_grad_(draw.chance(0.4))
        result.log_smoothing.requires_grad_(True)
    return result


def lifted_network(draw: Draw, shape: tuple[int, int, int], smoothing: float) -> InputConvexNetwork:
    """The same lifted, of fewer features, from stiff to soft in both deltas."""
    features, layers = draw.integer(1, 3), draw.integer(1, 3)
    weight = features * draw.scale()
    result = InputConvexNetwork(
        1,
        features,
        layers,
        draw.integer(2, 3),
        "lifted",
        mixing_size=draw.choice(1, 1, 3),  # type: ignore[arg-type]
        weight=weight,
        delta=(smoothing * features / weight, draw.log_uniform(1e-3, 1.0) * weight / features),
        generator=draw.generator,
    ).double()
    with torch.no_grad():
        for p in result.parameters():
            p.add_(draw.uniform(0.0, 0.7) * draw.normal(*p.shape))
        result.filters.mul_(draw.scale())
        result.biases.mul_(draw.log_uniform(1e-3, 1.0))
        if layers > 1 and draw.chance(0.3):
            result.log_mixing[draw.rand(*result.log_mixing.shape) > 0.7] = -30.0
    if draw.chance(0.4):
        for p in result.parameters():
            p.requires_grad_(draw.chance(0.4))
        result.filters.requires_grad_(True)
    return result
