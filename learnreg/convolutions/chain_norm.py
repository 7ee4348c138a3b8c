"""The norm of convolutions that follow each other on an image of their own size, zero beyond it after each of them.

Such a chain W is no block of one circulant: responses that leave the image are lost before the next convolution. But
G = W^T W has a short range, p pixels per application of W, and equals a Toeplitz matrix where both pixels are p or more
from the border. With window functions chi_k(i), sum_k chi_k² = 1,

    G = sum_k chi_k G chi_k + ½ (G_ij D_ij)_ij,   D_ij = sum_k (chi_k(i) - chi_k(j))²,

so that the largest eigenvalue of G is at most the largest of its blocks on the windows, plus ½ max_i sum_j |G_ij| D_ij.
Windows: borders, corners, and the middle; along a border G is Toeplitz, hence block diagonal in frequencies.

Source: localisation by a partition of unity (the IMS formula; Cycon, Froese, Kirsch and Simon, Schrödinger Operators,
1987, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["chain_norm_bound", "chain_reach", "smallest_side"]

_TRANSITION = 32  # pixels in which windows fall to zero: the larger, the closer the bound
_BLOCK = 256

Zone = tuple[str, list[int]]


def chain_reach(kernels: Sequence[Tensor]) -> int:
    """p: a response depends on pixels at most p away."""
    return sum(max(k.shape[-2:]) // 2 for k in kernels)


def smallest_side(kernels: Sequence[Tensor]) -> int:
    """Of images that :func:`chain_norm_bound` takes."""
    return 4 * chain_reach(kernels) + 4


@torch.no_grad()
def chain_norm_bound(kernels: Sequence[Tensor], sides: tuple[int, int]) -> tuple[float, float]:
    """Bound of the norm of a chain of kernels (c_i, c_{i-1}, k, l), odd sides, on images of these sides, and how large
    the share of its square is that comes from the windows' transitions. *Rigorous bound.*"""
    exact = [k.detach().to(torch.float64) for k in kernels]
    p = chain_reach(exact)
    transitions = [min(_TRANSITION, (n + 1) // 2 - p) for n in sides]
    rates = [(0.5 * math.pi / t) ** 2 for t in transitions]
    zones: list[list[Zone]] = []
    for t in transitions:
        width = p + t - 1
        zones.append([("low", list(range(width))), ("high", list(range(1 - width, 1))), ("middle", [0])])
    away = torch.arange(-2 * p, 2 * p + 1, dtype=torch.float64, device=exact[0].device) ** 2
    apart = rates[0] * away[:, None] + rates[1] * away[None, :]
    largest = spread = 0.0
    for rows in zones[0]:
        for cols in zones[1]:
            columns = _repeated(_gram_columns(exact, p, _distinct(rows, p), _distinct(cols, p)), p, rows, cols)
            spread = max(spread, 0.5 * float((columns.abs() * apart).sum((-2, -1)).max()))
            largest = max(largest, _largest_eigenvalue(columns, p, rows[0], cols[0], sides))
    total = largest + spread
    return math.sqrt(total) * (1.0 + 1e-10), spread / total if total > 0 else 0.0


def _gram_columns(kernels: Sequence[Tensor], p: int, rows: Zone, cols: Zone) -> Tensor:
    """Columns of G at these places, each on the window of the 4p + 1 pixels around it: (rows, cols, 4p + 1, 4p + 1)."""
    masks = [_inside(zone, p, kernels[0]) for zone in (rows, cols)]
    inside = (masks[0][:, None, :, None] & masks[1][None, :, None, :]).flatten(0, 1)[:, None].to(kernels[0].dtype)
    found = []
    for mask in torch.split(inside, _BLOCK):
        unit = torch.zeros_like(mask)
        unit[..., 2 * p, 2 * p] = 1.0
        found.append(_gram(unit, kernels, lambda v, mask=mask: v * mask))  # type: ignore[misc]
    return torch.cat(found).reshape(len(rows[1]), len(cols[1]), 4 * p + 1, 4 * p + 1)


def _distinct(zone: Zone, p: int) -> Zone:
    """The places of an axis up to 2p from the border: those farther away have the columns of the last."""
    return zone[0], [place for place in zone[1] if abs(place) <= 2 * p]


def _repeated(columns: Tensor, p: int, rows: Zone, cols: Zone) -> Tensor:
    """Columns of all places from those of distinct ones."""
    for axis, (_, places) in enumerate((rows, cols)):
        first = max(places[0], -2 * p)
        index = torch.tensor([min(max(place, -2 * p), 2 * p) - first for place in places], device=columns.device)
        columns = columns.index_select(axis, index)
    return columns


def _gram(x: Tensor, kernels: Sequence[Tensor], restrict: Callable[[Tensor], Tensor]) -> Tensor:
    for kernel in kernels:
        x = restrict(F.conv2d(x, kernel, padding=_margins(kernel)))
    for kernel in reversed(kernels):
        x = restrict(F.conv_transpose2d(x, kernel, padding=_margins(kernel)))
    return x


def _margins(kernel: Tensor) -> tuple[int, int]:
    return kernel.shape[-2] // 2, kernel.shape[-1] // 2


def _inside(zone: Zone, p: int, like: Tensor) -> Tensor:
    """Which of the 4p + 1 pixels around each place of an axis are in the image, (places, 4p + 1)."""
    kind, places = zone
    pixels = torch.tensor(places)[:, None] + torch.arange(-2 * p, 2 * p + 1)[None, :]
    inside = {"low": pixels >= 0, "high": pixels <= 0, "middle": torch.ones_like(pixels, dtype=torch.bool)}[kind]
    return inside.to(like.device)


def _largest_eigenvalue(columns: Tensor, p: int, rows: str, cols: str, sides: tuple[int, int]) -> float:
    """That of the block of G on a window, or of a circulant that contains it."""
    if rows == "middle" and cols == "middle":
        return _rounded(torch.fft.fft2(_wrapped(columns[0, 0], sides)).real.max(), columns)
    if rows == "middle" or cols == "middle":
        strip, side = (columns[0], sides[0]) if rows == "middle" else (columns[:, 0].transpose(-2, -1), sides[1])
        blocks = _banded(strip.transpose(-2, -1), p)  # (places, places, 4p + 1)
        spectrum = torch.fft.fft(_wrapped_last(blocks, side)).permute(2, 0, 1)[: side // 2 + 1]
        hermitian = 0.5 * (spectrum + spectrum.mH)
        return _rounded(torch.linalg.eigvalsh(hermitian).max(), columns)
    count_r, count_c = columns.shape[:2]
    size = count_r * count_c
    full = columns.new_zeros(count_r, count_c, count_r + 4 * p, count_c + 4 * p)
    for r in range(count_r):
        for c in range(count_c):
            full[r, c, r : r + 4 * p + 1, c : c + 4 * p + 1] = columns[r, c]
    square = full[..., 2 * p : 2 * p + count_r, 2 * p : 2 * p + count_c].reshape(size, size)
    return _rounded(torch.linalg.eigvalsh(0.5 * (square + square.T))[-1], columns)


def _banded(columns: Tensor, p: int) -> Tensor:
    """(places, 4p + 1, ...), entry (i, d) that of the places i and i + d - 2p, as a matrix (places, places, ...)."""
    count = columns.shape[0]
    full = columns.new_zeros(count, count + 4 * p, *columns.shape[2:])
    for i in range(count):
        full[i, i : i + 4 * p + 1] = columns[i]
    return full[:, 2 * p : 2 * p + count]


def _wrapped_last(kernel: Tensor, side: int) -> Tensor:
    """The centred last axis around a circle of ``side`` pixels, which is at least as long."""
    reach = kernel.shape[-1] // 2
    return F.pad(kernel, (0, side - kernel.shape[-1])).roll(-reach, -1)


def _wrapped(kernel: Tensor, sides: tuple[int, int]) -> Tensor:
    rows = _wrapped_last(kernel, sides[1])
    return _wrapped_last(rows.T, sides[0]).T


def _rounded(eigenvalue: Tensor, columns: Tensor) -> float:
    """Upwards, by more than the rounding of the columns and of the decomposition."""
    scale = float(columns.abs().sum((-2, -1)).max())
    return max(0.0, float(eigenvalue)) + 1e-11 * scale
