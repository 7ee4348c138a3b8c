"""Random regularizers of grouped filters for the hunt: multivariate experts and learned discretisations of total
variation and of total generalised variation."""

from __future__ import annotations

import torch
from truth.draw import Draw

from learnreg.regularizers import LearnedTotalGeneralizedVariation, LearnedTotalVariation, MultivariateExperts

__all__ = ["learned_generalized_variation", "learned_total_variation", "multivariate_experts"]


def _boundary(draw: Draw, side: int, shape: tuple[int, int, int]) -> str:
    fitting = ["zero", "circular", "replicate", *(["valid"] if side <= min(shape[1:]) else [])]
    return str(draw.choice(*fitting, *(["reflect"] if side // 2 < min(shape[1:]) else [])))


def multivariate_experts(draw: Draw, shape: tuple[int, int, int], smoothing: float) -> MultivariateExperts:
    """With centred filters or given ones, some groups next to rank one."""
    groups, members, size = draw.integer(1, 3), draw.integer(1, 3), draw.integer(2, min(3, *shape[1:]))
    boundary = _boundary(draw, size, shape)
    scale, norm = draw.scale(), "maximum" if draw.chance(0.25) else "euclidean"
    if draw.chance(0.5):
        result = MultivariateExperts(
            groups, members, size, draw.scale(), smoothing, boundary, generator=draw.generator, norm=norm  # type: ignore[arg-type]
        ).double()  # fmt: skip
        with torch.no_grad():
            result.filters.add_(0.3 * draw.normal(*result.filters.shape)).mul_(scale)
            result.log_weights.add_(draw.normal(groups))
            result.log_smoothing.add_(0.5 * draw.normal(groups))
        return result
    filters = scale * draw.normal(groups, members, size, size)
    if draw.chance(0.3):
        filters = filters[:, :1] + 1e-3 * filters
    weights = torch.stack([torch.tensor(draw.scale(), dtype=torch.float64) for _ in range(groups)])
    return MultivariateExperts.from_arrays(
        filters, weights, smoothing * (1.0 + draw.rand(groups)), boundary, norm=norm  # type: ignore[arg-type]
    )  # fmt: skip


def learned_total_variation(draw: Draw, shape: tuple[int, int, int], smoothing: float) -> LearnedTotalVariation:
    """From forward differences themselves to random kernels."""
    positions, boundary = draw.integer(1, 5), _boundary(draw, 4, shape)
    result = LearnedTotalVariation(
        positions, 3, draw.scale(), smoothing, boundary, draw.generator  # type: ignore[arg-type]
    ).double()  # fmt: skip
    with torch.no_grad():
        if draw.chance(0.8):
            result.kernels.add_(draw.log_uniform(1e-3, 0.5) * draw.normal(*result.kernels.shape))
            result.log_weights.add_(draw.normal(positions))
        if draw.chance(0.2):
            result.kernels.requires_grad_(False)
    return result


def learned_generalized_variation(
    draw: Draw, shape: tuple[int, int, int], smoothing: float
) -> LearnedTotalGeneralizedVariation:
    """From forward differences themselves to random kernels, the field stiff or nearly free."""
    positions, boundary = draw.integer(1, 3), _boundary(draw, 4, shape)
    result = LearnedTotalGeneralizedVariation(
        positions, 3, draw.scale(), draw.log_uniform(0.1, 10.0), smoothing, draw.log_uniform(1e-3, 1.0),
        boundary, draw.generator,  # type: ignore[arg-type]
    ).double()  # fmt: skip
    with torch.no_grad():
        if draw.chance(0.8):
            for kernels in (result.kernels, result.second_kernels):
                kernels.add_(draw.log_uniform(1e-3, 0.5) * draw.normal(*kernels.shape))
            result.log_weights.add_(draw.normal(2 * positions))
    return result
