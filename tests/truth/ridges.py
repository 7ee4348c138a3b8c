"""Random ridge regularizers for the hunt: composed filters, and splines whose second derivative rises and falls, below
zero, too, for the weakly convex ones."""

from __future__ import annotations

import torch
from truth.draw import Draw

from learnreg.regularizers import RidgeRegularizer, Scaled

__all__ = ["deep_ridge", "ridge_regularizer", "weakly_convex_ridge"]


def deep_ridge(draw: Draw, shape: tuple[int, int, int], smoothing: float) -> Scaled:
    """Concave parts that no data term makes up for, a learned or fixed factor in front."""
    regularizer = ridge_regularizer(draw, shape, smoothing, draw.log_uniform(0.3, 0.999))
    learned = [p for p in regularizer.parameters() if p.requires_grad]
    result = Scaled(regularizer, draw.log_uniform(1.5, 10.0))  # which fixes what it scales
    for p in learned:
        p.requires_grad_(True)
    return result.double()


def weakly_convex_ridge(draw: Draw, shape: tuple[int, int, int], smoothing: float) -> RidgeRegularizer:
    """The same with concave parts, deep and shallow ones."""
    return ridge_regularizer(draw, shape, smoothing, draw.log_uniform(0.03, 0.999))


def ridge_regularizer(
    draw: Draw, shape: tuple[int, int, int], smoothing: float, nonconvexity: float | None = None
) -> RidgeRegularizer:
    """With all parameters away from their start, some curvatures next to nothing, some parameters frozen; filters by
    themselves or in groups."""
    layers, size = draw.integer(1, 3), draw.integer(2, 3)
    side = layers * (size - 1) + 1
    members = draw.choice(1, 1, 2, 3)
    channels = (*(draw.integer(1, 3) for _ in range(layers - 1)), members * draw.integer(1, 3))
    boundaries = ["zero", "circular", *(["valid"] if side <= min(shape[1:]) else [])]
    boundaries += ["reflect"] if side // 2 < min(shape[1:]) else []
    conditioned = draw.chance(0.3)
    result = RidgeRegularizer(
        channels,
        size,
        2 * draw.integer(2, 10) + 1,
        "convex" if nonconvexity is None else "convex-nonconvex",
        nonconvexity=nonconvexity or 0.9,
        shared=draw.chance(0.5),
        group_size=members,
        boundary=draw.choice(*boundaries),  # type: ignore[arg-type]
        weight=channels[-1] * draw.scale(),
        smoothing=smoothing,
        noise_conditioned=conditioned,
        generator=draw.generator,
    ).double()
    with torch.no_grad():
        for p in result.parameters():
            p.add_(draw.uniform(0.0, 0.5) * draw.normal(*p.shape))
        curvature = result.log_curvature
        curvature.add_(draw.uniform(0.0, 2.0) * draw.normal(*curvature.shape))
        if draw.chance(0.3):
            curvature[draw.rand(*curvature.shape) > 0.7] = -30.0
        if nonconvexity is not None:
            depth = result.logit_depth
            depth.add_(draw.uniform(-2.0, 8.0) + draw.uniform(0.0, 3.0) * draw.normal(*depth.shape))
    if draw.chance(0.3):
        for p in result.parameters():
            p.requires_grad_(draw.chance(0.6))
        result.log_weights.requires_grad_(True)
    return result.at(draw.log_uniform(1e-2, 1.0)) if conditioned else result
