"""Where an adjoint goes wrong, from the entries of matrices: weights of rows and columns, or a part of the image.

With N the transpose of the matrix of ``adjoint`` and M that of ``forward``, weights make N_ij = d_i M_ij e_j. Small
operators are compared whole; of large ones some rows and columns are, each from one application to a unit vector and
gaussian probes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.testing.case import Direction, OperatorCase

__all__ = ["describe_location", "describe_weights"]

_SAMPLED, _SWEEPS = 24, 200
_FITS = 1e-4
_CONCENTRATED, _FEW = 0.9, 0.05
_LOCATION_PROBES = 16


def describe_weights(case: OperatorCase) -> str:
    """A sentence if adjoint(y) = e · A^T (d · y) with positive weights d of measurements, e of pixels; "" if not."""
    if case.has_matrix:
        fitted = _fit_matrix(case.matrix, case.adjoint_matrix)
        return "" if fitted is None else _describe(*fitted)
    for direction, other, words in (
        (case.adjoint, case.forward, "measurements"),
        (case.forward, case.adjoint, "pixels"),
    ):
        weights = _sampled_weights(case, direction, other)
        if weights is not None:
            return _sentence(words, weights if words == "measurements" else 1.0 / weights)
    return ""


def _fit_matrix(M: Tensor, N: Tensor) -> tuple[Tensor, Tensor] | None:
    """Positive d, e with N = d M e on all entries, by least squares on logarithms; None if there are none."""
    size = float(M.abs().max())
    present = M.abs() > 1e-9 * size
    if not bool(present.any()) or float(N.abs().masked_fill(present, 0.0).max()) > _FITS * float(N.abs().max()):
        return None
    ratio = torch.where(present, N, 1.0) / torch.where(present, M, 1.0)
    if bool((ratio <= 0).any()):
        return None
    logs, counts = ratio.log(), present.double()
    rows, cols = logs.new_zeros(M.shape[0], 1), logs.new_zeros(1, M.shape[1])
    for _ in range(_SWEEPS):
        rows = ((logs - cols) * counts).sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp_min(1.0)
        cols = ((logs - rows) * counts).sum(0, keepdim=True) / counts.sum(0, keepdim=True).clamp_min(1.0)
    spread = float(logs[present].std()) if int(present.sum()) > 1 else 0.0
    left = float(((logs - rows - cols) * counts).abs().max())
    if left > 1e-2 * spread:
        return None
    shift = rows[counts.sum(1) > 0].mean()
    return (rows - shift).exp().flatten()[counts.sum(1) > 0], (cols + shift).exp().flatten()[counts.sum(0) > 0]


def _describe(d: Tensor, e: Tensor) -> str:
    if _is_constant(d):
        return _sentence("pixels", e * d.mean())
    if _is_constant(e):
        return _sentence("measurements", d * e.mean())
    return (
        f"adjoint is weighted: adjoint(y) = e · A^T (d · y), with weights d of the measurements (ratio of largest to "
        f"smallest {float(d.max() / d.min()):.4g}) and e of the pixels ({float(e.max() / e.min()):.4g}), as for "
        "weighted inner products; divide by them"
    )


def _is_constant(weights: Tensor) -> bool:
    return float(weights.max() - weights.min()) <= 1e-3 * float(weights.mean())


def _sentence(words: str, weights: Tensor) -> str:
    formula = "A^T (d · y)" if words == "measurements" else "e · A^T y"
    return (
        f"adjoint is weighted: adjoint(y) = {formula} with weights of the {words} between {float(weights.min()):.4g} "
        f"and {float(weights.max()):.4g}, as for weighted inner products; divide by them"
    )


def _sampled_weights(case: OperatorCase, direction: Direction, other: Direction) -> Tensor | None:
    """Weights w_i of some unit vectors u_i with <direction(u_i), p> = w_i <u_i, other(p)> for all gaussian p; None
    where the ratio depends on p or is not positive, or all are alike."""
    size = math.prod(direction.source)
    places = torch.randperm(size, generator=case.generator)[:_SAMPLED]
    units = torch.zeros(len(places), size, dtype=case.dtype, device=case.device)
    units[torch.arange(len(places)), places] = 1.0
    probes = case.randn(3, other.source)
    rows = direction.apply(units.reshape(-1, *direction.source)).double().flatten(1)
    left = rows @ probes.double().flatten(1).T
    right = other.apply(probes.clone()).double().flatten(1)[:, places].T
    seen = (rows.norm(dim=1) > 0) & (right.abs().amin(1) > 0)
    if int(seen.sum()) < 3:
        return None
    ratio = left[seen] / right[seen]
    weights = ratio.median(1).values
    apart, spread = float((ratio - weights[:, None]).abs().max()), float(weights.max() - weights.min())
    return weights if apart <= 1e-2 * spread and bool((weights > 0).all()) else None


# ---- where the error is ----------------------------------------------------------------------------------------------


def describe_location(case: OperatorCase) -> str:
    """A sentence if the error sits at the boundary of the image or the data, or in few rows or columns; "" if not."""
    if case.has_matrix:
        error = (case.adjoint_matrix - case.matrix).square()
        for words, shape, energy in (
            ("image", case.operator.domain_shape, error.sum(0)),
            ("data", case.operator.range_shape, error.sum(1)),
        ):
            found = _locate(words, tuple(shape), energy)
            if found:
                return found
        return ""
    for words, direction in (("image", case.forward), ("data", case.adjoint)):
        if _outside_interior(case, direction):
            return _boundary(words)
    return ""


def _locate(words: str, shape: tuple[int, ...], energy: Tensor) -> str:
    total = float(energy.sum())
    frame = _frame(shape, energy.device)
    if frame is not None and float(energy[frame.flatten()].sum()) >= _CONCENTRATED * total:
        return _boundary(words)
    order = energy.argsort(descending=True)
    few = max(1, int(_FEW * len(energy)))
    if len(energy) >= 20 and float(energy[order[:few]].sum()) >= 0.999 * total:
        places = [tuple(int(i) for i in torch.unravel_index(k, shape)) for k in order[: min(few, 3)] if energy[k] > 0]
        return f"adjoint is wrong in few places of the {words}, first of all at index {', '.join(map(str, places))}"
    return ""


def _boundary(words: str) -> str:
    return (
        f"the error of adjoint is concentrated at the boundary of the {words}: the transpose of a padding adds what "
        "lies outside back to the pixels it was copied from"
    )


def _frame(shape: tuple[int, ...], device: torch.device) -> Tensor | None:
    """A mask of the outermost pixels, a sixth of each side wide; None where the image is too small to have an
    interior."""
    if len(shape) < 2 or min(shape[-2:]) < 5:
        return None
    rows, cols = (max(1, n // 6) for n in shape[-2:])
    mask = torch.ones(shape, dtype=torch.bool, device=device)
    mask[..., rows:-rows, cols:-cols] = False
    return mask


def _outside_interior(case: OperatorCase, direction: Direction) -> bool:
    """Whether the gap of probes supported in the interior is far below that of all probes."""
    frame = _frame(direction.source, case.device)
    if frame is None:
        return False
    other = case.adjoint if direction.name == "forward" else case.forward
    x, y = case.randn(_LOCATION_PROBES, direction.source), case.randn(_LOCATION_PROBES, other.source)
    back = other.apply(y.clone()).double()

    def gap(x: Tensor) -> float:
        left = (direction.apply(x.clone()).double() * y.double()).flatten(1).sum(1)
        return float((left - (x.double() * back).flatten(1).sum(1)).square().mean())

    return gap(x.masked_fill(frame, 0.0)) <= (1 - _CONCENTRATED) ** 2 * gap(x)
