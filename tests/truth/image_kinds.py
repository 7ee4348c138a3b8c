"""Random regularizers of signals, colour and complex images and volumes."""

from __future__ import annotations

from typing import Any

import torch
from truth.draw import DOUBLE, Draw

import learnreg as lr
from learnreg.regularizers import (
    FieldsOfExperts,
    GeneralisedTikhonov,
    LearnedTotalVariation,
    MultivariateExperts,
    Regularizer,
    RidgeRegularizer,
    TotalVariation,
)

__all__ = ["draw_shape", "experts", "groups", "ridge", "squares", "variation"]

_LONGEST = {1: 20, 2: 6, 3: 4}


def draw_shape(draw: Draw) -> tuple[int, ...]:
    """(channels, *sides), of one to three sides, at most a few hundred numbers."""
    dimensions = draw.integer(1, 3)
    sides = [draw.integer(3, _LONGEST[dimensions]) for _ in range(dimensions)]
    return draw.integer(1, 3), *sides


def _kind(draw: Draw, shape: tuple[int, ...]) -> dict[str, Any]:
    """Channels, coupling and dimensions of a regularizer of such images."""
    couplings = ["separate", "joint"] + (["complex"] * 2 if shape[0] == 2 else [])
    return {"channels": shape[0], "coupling": draw.choice(*couplings), "dimensions": len(shape) - 1}


def _moved(draw: Draw, result: Regularizer) -> Regularizer:
    """Away from its start."""
    result = result.double()
    with torch.no_grad():
        for p in result.parameters():
            p.add_(0.2 * draw.normal(*p.shape))
    return result


def _sides(draw: Draw, shape: tuple[int, ...]) -> tuple[int, Any]:
    return draw.integer(2, min(3, *shape[1:])), draw.choice("valid", "zero", "circular", "reflect")


def experts(draw: Draw, shape: tuple[int, ...], smoothing: float) -> Regularizer:
    count, (size, boundary), kind = draw.integer(1, 4), _sides(draw, shape), _kind(draw, shape)
    potential = draw.choice(lr.PseudoHuber, lr.PseudoHuber, lr.LogCosh, lr.Huber)
    if draw.chance(0.5):
        start: Any = FieldsOfExperts(
            count, size, potential(smoothing, draw.scale()), boundary, generator=draw.generator, **kind  # type: ignore[operator]
        )  # fmt: skip
        return _moved(draw, start)
    filters = FieldsOfExperts(count, size, generator=draw.generator, **kind).filters
    weights = draw.scale() * (0.5 + draw.rand(count))
    scales = smoothing * (1.0 + draw.rand(count))
    numbers = draw.scale() * draw.normal(*filters.shape)
    return FieldsOfExperts.from_arrays(numbers, weights, scales, boundary, potential(1.0), **kind)  # type: ignore[operator]


def groups(draw: Draw, shape: tuple[int, ...], smoothing: float) -> Regularizer:
    if len(shape) == 3 and draw.chance(0.4):
        learned: Any = LearnedTotalVariation(
            draw.integer(1, 3), 3, draw.scale(), smoothing, str(draw.choice("replicate", "zero")), draw.generator,  # type: ignore[arg-type]
            **_kind(draw, shape),
        )  # fmt: skip
        return _moved(draw, learned)
    (size, boundary), kind = _sides(draw, shape), _kind(draw, shape)
    return _moved(
        draw,
        MultivariateExperts(
            draw.integer(1, 3), draw.integer(1, 3), size, draw.scale(), smoothing, boundary,
            generator=draw.generator, **kind,
        ),
    )  # fmt: skip


def variation(draw: Draw, shape: tuple[int, ...], smoothing: float) -> Regularizer:
    return TotalVariation(draw.scale(), smoothing, **_kind(draw, shape)).double()


def squares(draw: Draw, shape: tuple[int, ...], smoothing: float) -> Regularizer:
    size, boundary = _sides(draw, shape)
    kind = _kind(draw, shape)
    return _moved(
        draw, GeneralisedTikhonov(draw.integer(1, 4), size, draw.scale(), boundary, generator=draw.generator, **kind)
    )


def ridge(draw: Draw, shape: tuple[int, ...], smoothing: float) -> Regularizer:
    kind = _kind(draw, shape)
    kind["image_channels"] = kind.pop("channels")
    convexity: Any = draw.choice("convex", "convex", "convex-nonconvex")
    result = RidgeRegularizer(
        (2, 3), 2, 7, convexity, nonconvexity=draw.log_uniform(1e-3, 0.9), weight=draw.scale(), smoothing=smoothing,
        boundary=draw.choice("zero", "circular"), generator=draw.generator, **kind,  # type: ignore[arg-type]
    )  # fmt: skip
    return _moved(draw, result.to(DOUBLE))
