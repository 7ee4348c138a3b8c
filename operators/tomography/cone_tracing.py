"""Cone-beam projections without a matrix, with an exact transpose: numba's kernels on the CPU, plain torch elsewhere.

Memory beyond the arguments: two copies of a volume, and the sums of some views.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from learnreg.errors import ShapeError
from learnreg.kernels.loader import kernels_for
from learnreg.kernels.threads import in_parts
from learnreg.linear.norms import nonnegative_norm_bound

__all__ = ["ConeScan", "ConeTracing"]

_VIEWS = 16
"""Whose sums are held at a time."""

_AT_ONCE = 2**22
"""Numbers that plain torch handles at a time."""

_COARSE, _COARSE_STEPS = 24, 20
"""Side of the volume, and power steps, with which the norm's leading volume is looked for first."""


class ConeScan(NamedTuple):
    """A circular orbit around a cube with n voxels along a side; lengths in sides of the cube, angles in radians."""

    n: int
    angles: tuple[float, ...]
    rows: int
    columns: int
    pitch: float
    source_to_center: float
    source_to_detector: float

    def coarser(self, n: int) -> ConeScan:
        """The same orbit with fewer and wider voxels, detectors and views."""
        factor = self.n / n
        return self._replace(
            n=n,
            angles=self.angles[:: max(1, min(len(self.angles) // 16, int(factor)))],
            rows=math.ceil(self.rows / factor),
            columns=math.ceil(self.columns / factor),
            pitch=self.pitch * factor,
        )


class _Views(NamedTuple):
    """Some views whose rays are followed along one axis: sources (views, 2), detectors (views, columns, 2) along it and
    across, in voxels, float64; driven (views, columns) bool: by this axis."""

    sources: Tensor
    detectors: Tensor
    driven: Tensor


class ConeTracing(nn.Module):
    """A and A^T of a cone-beam scan: volumes (batch, 1, z, y, x), views (batch, 1, angles, rows, columns)."""

    bits: Tensor

    def __init__(self, scan: ConeScan) -> None:
        super().__init__()
        self.scan = scan
        angles = torch.tensor(scan.angles, dtype=torch.float64)
        self.register_buffer("bits", angles.view(torch.int64), persistent=False)  # which .float() leaves alone

    def mismatch(self) -> float:
        """The transpose is exact."""
        return 0.0

    @torch.no_grad()
    def apply_to(self, x: Tensor) -> Tensor:
        """A x."""
        return torch.stack([self._project(volume[0])[None] for volume in x]) if len(x) else self._none(x)

    @torch.no_grad()
    def apply_transpose_to(self, y: Tensor) -> Tensor:
        """A^T y."""
        n = self.scan.n
        return torch.stack([self._back_project(v[0])[None] for v in y]) if len(y) else y.new_zeros(0, 1, n, n, n)

    def _none(self, x: Tensor) -> Tensor:
        return x.new_zeros(0, 1, len(self.scan.angles), self.scan.rows, self.scan.columns)

    def _project(self, volume: Tensor, squared: bool = False) -> Tensor:
        _check_data(volume)
        scan = self.scan
        both = [volume.permute(axes).contiguous() for axes in ((1, 2, 0), (2, 1, 0))]
        result = volume.new_empty(len(scan.angles), scan.rows, scan.columns)
        for first in range(0, len(scan.angles), _VIEWS):
            chosen = slice(first, first + _VIEWS)
            pair = self._views(chosen)
            sums = volume.new_zeros(len(pair[0].sources), scan.columns, scan.rows)
            for slabs, views in zip(both, pair, strict=True):
                _project(slabs, views, scan.pitch * scan.n, squared, sums)
            lengths = self._lengths(pair)
            sums *= (lengths.square() if squared else lengths).to(sums)
            result[chosen] = sums.transpose(1, 2)
        return result

    def _back_project(self, sinogram: Tensor) -> Tensor:
        _check_data(sinogram)
        n = self.scan.n
        both = [sinogram.new_zeros(n, n, n) for _ in range(2)]
        for first in range(0, len(self.scan.angles), _VIEWS):
            chosen = slice(first, first + _VIEWS)
            pair = self._views(chosen)
            sums = sinogram[chosen].transpose(1, 2) * self._lengths(pair).to(sinogram)
            for slabs, views in zip(both, pair, strict=True):
                _back_project(sums.contiguous(), views, self.scan.pitch * n, slabs)
        return both[0].permute(2, 0, 1).contiguous().add_(both[1].permute(2, 1, 0))

    # ---- geometry ----------------------------------------------------------------------------------------------------

    def _views(self, chosen: slice) -> tuple[_Views, _Views]:
        """Views followed along y (downwards, as rows are numbered) and along x."""
        scan, middle = self.scan, 0.5 * (self.scan.n - 1)
        angles = self.bits.view(torch.float64)[chosen, None]
        ray, axis = ((-angles.sin(), angles.cos()), (angles.cos(), angles.sin()))
        numbers = torch.arange(scan.columns, dtype=torch.float64, device=angles.device) - 0.5 * (scan.columns - 1)
        behind = scan.source_to_detector - scan.source_to_center
        source = [-scan.source_to_center * r for r in ray]
        detector = [behind * r + numbers * scan.pitch * a for r, a in zip(ray, axis, strict=True)]
        x, y = (torch.cat([s, d], 1) * scan.n for s, d in zip(source, detector, strict=True))
        points = torch.stack([middle - y, middle + x], -1)
        sources, detectors = points[:, 0], points[:, 1:]
        steps = (detectors - sources[:, None]).abs()
        steep = steps[..., 0] > steps[..., 1]
        upright = _Views(sources.contiguous(), detectors.contiguous(), steep)
        return upright, _Views(sources.flip(-1).contiguous(), detectors.flip(-1).contiguous(), ~steep)

    def _lengths(self, pair: tuple[_Views, _Views]) -> Tensor:
        """Of each ray in one slab, (views, columns, rows)."""
        scan, upright = self.scan, pair[0]
        steps = (upright.detectors - upright.sources[:, None]).abs()
        height = torch.arange(scan.rows, dtype=torch.float64, device=steps.device) - 0.5 * (scan.rows - 1)
        squares = steps.square().sum(-1)[..., None] + (height * scan.pitch * scan.n).square()
        return squares.sqrt() / steps.amax(-1)[..., None] / scan.n

    # ---- bounds ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def norm_bound(self) -> float:
        """Upper bound of ‖A‖ within a few percent, from the leading volume of a coarser scan. *Rigorous.*"""
        scan = self.scan
        volume = torch.ones(1, 1, scan.n, scan.n, scan.n, dtype=torch.float64, device=self.bits.device)
        if scan.n > 2 * _COARSE:
            coarse = ConeTracing(scan.coarser(_COARSE)).leading_volume()
            volume = torch.nn.functional.interpolate(coarse, (scan.n,) * 3, mode="trilinear").to(volume)
        terms = 4 * scan.n + len(scan.angles) * scan.rows * scan.columns + 32
        return nonnegative_norm_bound(lambda v: self.apply_transpose_to(self.apply_to(v)), volume, terms)

    def leading_volume(self) -> Tensor:
        """Nearly the leading eigenvector of A^T A, positive."""
        volume = torch.ones(1, 1, *(self.scan.n,) * 3, dtype=torch.float64)
        for _ in range(_COARSE_STEPS):
            volume = self.apply_transpose_to(self.apply_to(volume))
            volume = (volume / volume.max()).clamp_min(1e-3)
        return volume

    @torch.no_grad()
    def row_norms(self) -> Tensor:
        """2-norms of the rows, (1, angles, rows, columns) float64, rounded up."""
        ones = torch.ones((self.scan.n,) * 3, dtype=torch.float64, device=self.bits.device)
        return self._project(ones, squared=True).sqrt()[None] * (1.0 + 1e-12)


def _check_data(tensor: Tensor) -> None:
    if tensor.is_meta:
        raise ShapeError("ConeBeam3D: got a tensor on the device 'meta', which has no data.")


def _project(slabs: Tensor, views: _Views, pitch: float, squared: bool, out: Tensor) -> None:
    """Add the sums of some views (views, columns, rows) through (slabs, across, z) to ``out``."""
    kernels = kernels_for("cone_rays", slabs, out, views.sources, views.detectors)
    if kernels is not None:
        arrays = [t.numpy() for t in (slabs, *views)]
        work = lambda first, stop: kernels.project(*arrays, pitch, squared, first, stop, out.numpy())  # noqa: E731
        in_parts(work, len(out), out.numel() * len(slabs))
        return
    n, rows = len(slabs), out.shape[2]
    for view, k, q, line, (u, w), pixel, (below, above) in _weights(views, pitch, n, rows, slabs.dtype):
        if squared:
            u, w, below, above = u * u, w * w, below * below, above * above
        blended = torch.nn.functional.pad(u[:, None] * slabs[k, line] + w[:, None] * slabs[k, line + 1], (1, 1))
        sums = below * blended.gather(1, pixel) + above * blended.gather(1, pixel + 1)
        out[view].index_add_(0, q, sums)


def _back_project(sums: Tensor, views: _Views, pitch: float, out: Tensor) -> None:
    """Add what some views give (slabs, across, z) to ``out``."""
    kernels = kernels_for("cone_rays", sums, out, views.sources, views.detectors)
    if kernels is not None:
        arrays = [t.numpy() for t in (sums, *views)]
        work = lambda first, stop: kernels.back_project(*arrays, pitch, first, stop, out.numpy())  # noqa: E731
        in_parts(work, len(out), sums.numel() * len(out))
        return
    n, rows = len(out), sums.shape[2]
    flat = out.reshape(n * n, n)
    for view, k, q, line, (u, w), pixel, (below, above) in _weights(views, pitch, n, rows, out.dtype):
        values = sums[view, q]
        blended = values.new_zeros(len(q), n + 2)
        blended.scatter_add_(1, pixel, below * values).scatter_add_(1, pixel + 1, above * values)
        flat.index_add_(0, k * n + line, u[:, None] * blended[:, 1:-1])
        flat.index_add_(0, k * n + line + 1, w[:, None] * blended[:, 1:-1])


_Pair = tuple[Tensor, Tensor]


def _weights(
    views: _Views, pitch: float, n: int, rows: int, dtype: torch.dtype
) -> Iterator[tuple[int, Tensor, Tensor, Tensor, _Pair, Tensor, _Pair]]:
    """For a view after the other, and some slabs at a time: the view; slabs and columns (pairs,) that meet; the first
    of two lines and their weights; the first voxel of each row's pair in the padded line, (pairs, rows), and its
    weights; as ``kernels.cone_rays`` computes them."""
    device = views.sources.device
    row = torch.arange(rows, dtype=torch.float64, device=device)
    for view, (source, detector, driven) in enumerate(zip(*views, strict=True)):
        columns = driven.nonzero()[:, 0]
        step = max(1, _AT_ONCE // max(1, len(columns) * max(rows, n)))
        for first in range(0, n, step):
            slabs = torch.arange(first, min(first + step, n), device=device)
            k, q = (t.flatten() for t in torch.meshgrid(slabs, columns, indexing="ij"))
            share = (k - source[0]) / (detector[q, 0] - source[0])
            t = source[1] + share * (detector[q, 1] - source[1])
            met = (t > -1.0) & (t < n)
            k, q, share, t = k[met], q[met], share[met], t[met]
            floor = t.floor()
            w = t - floor
            before, after = floor < 0, floor > n - 2
            first_weight = torch.where(before, w, torch.where(after, 0.0, 1.0 - w))
            second_weight = torch.where(before, 0.0, torch.where(after, 1.0 - w, w))
            z = (0.5 * (n - 1) - 0.5 * (rows - 1) * share * pitch)[:, None] + row * (share * pitch)[:, None]
            inside = (z > -1.0) & (z < n)
            z = torch.where(inside, z + 1.0, 0.0)
            pixel = z.long().clamp(0, n)
            above = (z - pixel).to(dtype)
            below = torch.where(inside, 1.0 - above, 0.0)
            lines = floor.clamp(0, n - 2).long()
            pair = (first_weight.to(dtype), second_weight.to(dtype))
            yield view, k, q, lines, pair, pixel, (below, torch.where(inside, above, 0.0))
