"""What is checked of a foreign operator when it is adapted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.errors import OperatorError
from learnreg.linear.arguments import real_number
from learnreg.linear.norms import power_estimate
from learnreg.operators.adapters.black_box import FIXED, BlackBox

__all__ = ["adjoint_gap", "check_linear", "declare", "probe"]

_POWER_STEPS = 20


@torch.enable_grad()
def probe(operator: BlackBox) -> None:
    """Call forward and adjoint on random tensors; where the dtype is open, in float64 and in float32: one that fails
    is avoided from then on.

    Raises
    ------
    OperatorError: a function raised, returned another shape, NaN or infinity, changed its input, or depends on tensors
        that require a gradient.
    """
    if any(p.requires_grad for p in operator.parameters()):
        raise OperatorError(f"{operator.name}: its parameters require a gradient. {FIXED}", "fixed")
    if operator.compute_dtype is not None:
        return _probe_both(operator)
    failures: dict[torch.dtype, OperatorError] = {}
    for dtype in (torch.float64, torch.float32):
        try:
            _probe_both(operator, dtype)
        except OperatorError as failure:
            if failure.failed_property not in ("forward", "adjoint"):
                raise
            failures[dtype] = failure
    if len(failures) == 2:
        raise failures[torch.float64]
    if failures:
        operator.compute_dtype = torch.float32 if torch.float64 in failures else torch.float64
    return None


def _probe_both(operator: BlackBox, dtype: torch.dtype = torch.float64) -> None:
    for which, shape in ((0, operator.domain_shape), (1, operator.range_shape)):
        x = random_like(operator, shape, 2, seed=which).to(dtype)
        kept, what = x.clone(), ("forward", "adjoint")[which]
        y = operator.run(which, x)
        if not torch.equal(x, kept):
            raise OperatorError(f"{operator.name}: its {what} changes its input; copy it first.", "purity")
        if not bool(torch.isfinite(y).all()):
            raise OperatorError(
                f"{operator.name}: its {what} returned NaN or infinite numbers for standard normal noise of shape "
                f"{tuple(x.shape)}; check it on such an input.",
                "finite",
            )


def random_like(operator: BlackBox, shape: tuple[int, ...], batch: int, seed: int) -> Tensor:
    """Standard normal noise in float64 where the operator computes."""
    noise = torch.randn(batch, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return noise.to(operator._device())


def adjoint_gap(operator: BlackBox) -> float:
    """Largest |<Ax,y> - <x,By>| / (‖Ax‖ ‖y‖) over random x, with y random and with y = Ax: an *estimate* from below of
    the distance of the adjoint B from A^T."""
    x = random_like(operator, operator.domain_shape, 2, seed=2)
    y = random_like(operator, operator.range_shape, 2, seed=3)
    image = operator.run(0, x)
    worst = 0.0
    for other in (y, image):
        left, right = (image * other).flatten(1).sum(1), (x * operator.run(1, other)).flatten(1).sum(1)
        scale = image.flatten(1).norm(dim=1) * other.flatten(1).norm(dim=1)
        worst = max(worst, float(((left - right).abs() / scale.clamp_min(1e-300)).nan_to_num(math.inf).max()))
    return worst


def gap_limit(operator: BlackBox) -> float:
    """The largest gap that rounding explains."""
    return 1e-10 if operator.dtype_for(torch.float64) == torch.float64 else 1e-5


def check_linear(operator: BlackBox) -> None:
    """OperatorError unless A(x - 2z) = Ax - 2Az up to rounding, for random x and z."""
    x, z = random_like(operator, operator.domain_shape, 2, seed=4)
    image, other, both = operator.run(0, torch.stack([x, z, x - 2 * z]))
    gap = float((image - 2 * other - both).norm() / (image.norm() + 2 * other.norm()).clamp_min(1e-300))
    if not gap <= gap_limit(operator):
        raise OperatorError(
            f"{operator.name}: it is not linear, A(x - 2z) differs from Ax - 2Az by {gap:.1e} (relative). An affine "
            "operator becomes linear when A(0) is subtracted and moved to the data.",
            "linearity",
        )


def check_adjoint(operator: BlackBox, hint: str = "") -> None:
    """OperatorError unless the adjoint test passes up to rounding."""
    gap, limit = adjoint_gap(operator), gap_limit(operator)
    if not gap <= limit:
        raise OperatorError(
            f"{operator.name}: its adjoint is not the transpose of its forward, |<Ax,y> - <x,By>| is {gap:.1e} "
            f"‖Ax‖ ‖y‖, above {limit:.0e}. {hint or _ADJOINT}",
            "adjoint",
        )


def declare(operator: BlackBox, norm_bound: float | None, gram_lower_bound: float | None) -> None:
    """Store the bounds a user declares, after holding them against estimates from the other side.

    Raises
    ------
    ConfigError: no finite number >= 0. OperatorError: a power method finds a larger norm, or a smaller eigenvalue.
    """
    for name, value in (("norm_bound", norm_bound), ("gram_lower_bound", gram_lower_bound)):
        if value is not None:
            real_number(value, f"{operator.name}({name})", least=0.0)
    slack = 1.0 + gap_limit(operator)
    largest = _power(operator) if norm_bound is not None or gram_lower_bound else 0.0
    if norm_bound is not None and largest > norm_bound * slack:
        raise OperatorError(
            f"{operator.name}: norm_bound={norm_bound:g} is declared, but the norm is at least {largest:.6g}; declare "
            "a larger one, or none to have it computed.",
            "norm_bound",
        )
    if gram_lower_bound:
        lowest = largest**2 - _power(operator, shift=largest**2) ** 2  # a Rayleigh quotient: never below the smallest
        if gram_lower_bound > lowest + (slack - 1.0) * largest**2:
            raise OperatorError(
                f"{operator.name}: gram_lower_bound={gram_lower_bound:g} is declared, but the smallest eigenvalue of "
                f"A^T A is at most {lowest:.6g}; declare a smaller one, or none and add a ridge.",
                "gram_lower_bound",
            )
    operator.declared_norm = None if norm_bound is None else float(norm_bound)
    operator.declared_gram = float(gram_lower_bound or 0.0)


def _power(operator: BlackBox, shift: float = 0.0) -> float:
    """Estimate from below of the square root of the largest eigenvalue of A^T A, or of shift - A^T A."""

    def gram(v: Tensor) -> Tensor:
        image = operator.run(1, operator.run(0, v))
        return shift * v - image if shift else image

    return power_estimate(gram, operator.domain_shape, device=operator._device(), steps=_POWER_STEPS)


_ADJOINT = "Correct the adjoint, or let from_callables(forward, None, ...) derive it, where forward is made of torch."
