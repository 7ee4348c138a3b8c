"""A projector without a matrix: the weights of each ray are computed where it passes, in both directions alike.

Memory is a few images and sinograms and 40 bytes for each ray that symmetries leave. On the CPU numba's kernels run in
as many threads as torch may use; every sum has one order, so that bits do not depend on their number. Elsewhere, and
without numba, plain torch computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from learnreg.errors import ConfigError, OperatorError, ShapeError
from learnreg.kernels.loader import kernels_for
from learnreg.kernels.threads import in_parts
from learnreg.operators.tomography.geometry import Geometry
from learnreg.operators.tomography.rays import Kernel, rays_of
from learnreg.operators.tomography.symmetric_product import SymmetricProduct
from learnreg.operators.tomography.symmetry import reordered, symmetry_of

__all__ = ["RayTracing"]

_WIDE = 3
"""Columns from which on the kernels for eight of them are faster than those for one."""

_AT_ONCE = 2**22
"""Numbers that plain torch handles at a time."""

_LARGEST_SIDE = 2**13
"""Beyond, the eight motions of an image take more than 4 GB."""

_COARSE, _COARSE_STEPS = 64, 30
"""Side of the image, and power steps, with which the norm's leading image is looked for first."""


class _Part(NamedTuple):
    """Rays of one direction, (rays,) float64 each, as in ``rays.Rays``."""

    offsets: Tensor
    slopes: Tensor
    gaps: Tensor
    inverses: Tensor


class RayTracing(SymmetricProduct):
    """A (rays, pixels) and A^T from a geometry; kernel: "linear" or "line".

    Raises
    ------
    ConfigError: another kernel, or an image of one pixel. OperatorError: an image of more than 8,192² pixels.
    """

    bits: Tensor

    def __init__(self, geometry: Geometry, kernel: Kernel) -> None:
        if kernel == "strip" or geometry.image_size < 2:
            raise ConfigError(
                f"backend='matrix-free' with kernel={kernel!r} and image_size={geometry.image_size}: expected the "
                "kernel 'linear' or 'line' and at least 2 pixels along a side; use backend='matrix'."
            )
        if geometry.image_size > _LARGEST_SIDE:
            raise OperatorError(
                f"an image of {geometry.image_size:,}² pixels does not fit into the memory; the side is at most "
                f"{_LARGEST_SIDE:,}.",
                "memory",
            )
        symmetry = symmetry_of(geometry)
        found = rays_of(geometry, kernel, symmetry.rows)
        upright_first = np.argsort(~found.upright, kind="stable")
        super().__init__(reordered(symmetry, upright_first))
        self.geometry, self.kernel, self.upright = geometry, kernel, int(found.upright.sum())
        lengths = found.lengths * geometry.pixel_size
        table = np.stack([found.offsets, found.slopes, found.gaps, found.inverses, lengths])[:, upright_first]
        self._keep(np.int64, bits=table.view(np.int64))  # which .float() leaves alone

    # ---- products ----------------------------------------------------------------------------------------------------

    def _multiply(self, transposed: bool, x: Tensor) -> Tensor:
        if x.is_meta:
            raise ShapeError("the projector: got a tensor on the device 'meta', which has no data.")
        columns = x.shape[1]
        if columns >= _WIDE:
            x = torch.nn.functional.pad(x, (0, -columns % 8))
        lengths = self._table()[4].to(x.dtype)[:, None]
        result = self._from_rays(x * lengths) if transposed else self._to_rays(x) * lengths
        return result[:, :columns].contiguous()

    def _table(self) -> Tensor:
        return self.bits.view(torch.float64).reshape(5, -1)

    def _parts(self) -> Iterator[tuple[bool, slice, _Part]]:
        """Whether they are upright, which they are, and the rays of both directions, without empty ones."""
        table = self._table()
        for flat, rays in ((False, slice(0, self.upright)), (True, slice(self.upright, table.shape[1]))):
            if rays.stop > rays.start:
                yield flat, rays, _Part(*(row[rays].contiguous() for row in table[:4]))

    def _to_rays(self, x: Tensor) -> Tensor:
        n = self.geometry.image_size
        images, out = x.reshape(n, n, -1), x.new_zeros(self._table().shape[1], x.shape[1])
        for flat, rays, part in self._parts():
            _project(images.transpose(0, 1).contiguous() if flat else images, part, out[rays])
        return out

    def _from_rays(self, y: Tensor) -> Tensor:
        n, result = self.geometry.image_size, None
        for flat, rays, part in self._parts():
            images = y.new_zeros(n, n, y.shape[1])
            _back_project(y[rays].contiguous(), part, images)
            images = images.transpose(0, 1) if flat else images
            result = images if result is None else result.add_(images)
        assert result is not None
        return result.reshape(n * n, -1)

    # ---- bounds ------------------------------------------------------------------------------------------------------

    def _row_squares(self) -> Tensor:
        table = self._table()
        squares, n = torch.zeros_like(table[0]), self.geometry.image_size
        for _, rays, part in self._parts():
            kernels = kernels_for("rays", *part)
            if kernels is not None:
                kernels.row_squares(n, *(t.numpy() for t in part), squares[rays].numpy())
                continue
            for chosen, _, first, second in _weights(part, n, 1, torch.float64):
                squares[rays][chosen] = (first.square() + second.square()).sum(1)
        return squares * table[4].square()

    def _norm_start(self) -> tuple[Tensor, int]:
        """The leading image of a coarser scan."""
        n = self.geometry.image_size
        image = torch.ones(1, 1, n, n, dtype=torch.float64, device=self.bits.device)
        if n > 2 * _COARSE:
            coarse = RayTracing(_coarser(self.geometry), self.kernel).leading_image()
            image = torch.nn.functional.interpolate(coarse, (n, n), mode="bilinear").to(image)
        return image.reshape(1, -1), 2 * n + self.rays + 16

    def leading_image(self) -> Tensor:
        """Nearly the leading eigenvector of A^T A, (1, 1, n, n), positive."""
        image = torch.ones(1, self.pixels, dtype=torch.float64)
        for _ in range(_COARSE_STEPS):
            image = self.apply_transpose_to(self.apply_to(image))
            image = (image / image.max()).clamp_min(1e-3)
        n = self.geometry.image_size
        return image.reshape(1, 1, n, n)


def _coarser(geometry: Geometry) -> Geometry:
    """A scan of the same image by fewer and wider pixels, detectors and views."""
    factor = geometry.image_size / _COARSE
    views = max(1, min(len(geometry.angles) // 16, int(factor)))
    return replace(
        geometry,
        image_size=_COARSE,
        pixel_size=geometry.pixel_size * factor,
        detectors=max(1, math.ceil(geometry.detectors / factor)),
        detector_pitch=geometry.detector_pitch * factor,
        angles=geometry.angles[::views],
        dead_detectors=(),
    )


def _project(images: Tensor, part: _Part, out: Tensor) -> None:
    """Add the sums along rays, (rays, columns), of images (rows, pixels, columns) to ``out``."""
    kernels = kernels_for("rays", images, out, *part)
    if kernels is not None:
        kernel = kernels.project_wide if images.shape[2] >= _WIDE else kernels.project
        arrays = [t.numpy() for t in (images, *part)]
        in_parts(lambda first, stop: kernel(*arrays, first, stop, out.numpy()), len(out))
        return
    n, columns = images.shape[1:]
    flat = images.reshape(n * n, columns)
    for chosen, pixel, first, second in _weights(part, n, columns, images.dtype):
        sums = flat[pixel] * first[..., None]
        sums += flat[pixel + 1] * second[..., None]
        out[chosen] += sums.sum(1)


def _back_project(sums: Tensor, part: _Part, out: Tensor) -> None:
    """Add what rays give the images (rows, pixels, columns) to ``out``."""
    kernels = kernels_for("rays", sums, out, *part)
    if kernels is not None:
        kernel = kernels.back_project_wide if out.shape[2] >= _WIDE else kernels.back_project
        arrays = [t.numpy() for t in (sums, *part)]
        in_parts(lambda first, stop: kernel(*arrays, first, stop, out.numpy()), len(out), 16)
        return
    n, columns = out.shape[1:]
    flat = out.reshape(n * n, columns)
    for chosen, pixel, first, second in _weights(part, n, columns, out.dtype):
        values = sums[chosen][:, None]
        flat.index_add_(0, pixel.flatten(), (values * first[..., None]).reshape(-1, columns))
        flat.index_add_(0, pixel.flatten() + 1, (values * second[..., None]).reshape(-1, columns))


def _weights(part: _Part, n: int, columns: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Some rays after the other: which, the first pixels of the pairs that they meet in each row, (rays, n) numbers in
    the image, and the weights of both; as ``kernels.rays`` computes them."""
    rows = torch.arange(n, device=part.offsets.device)
    step = max(1, _AT_ONCE // (n * columns))
    for start in range(0, len(part.offsets), step):
        chosen = slice(start, start + step)
        offsets, slopes, gaps, inverses = (t[chosen, None] for t in part)
        t = offsets + rows * slopes
        pixel = t.floor().clamp(-2.0, n + 1.0)
        share = ((t - pixel - gaps).clamp_min(0.0) * inverses).clamp_max(1.0)
        first, second = 1.0 - share, share.clone()
        before, after = pixel < 0, pixel > n - 2
        first[before], second[before] = share[before], 0.0
        second[after], first[after] = first[after], 0.0
        outside = (t <= -1.0) | (t >= n)
        first[outside] = second[outside] = 0.0
        yield chosen, rows * n + pixel.clamp(0, n - 2).long(), first.to(dtype), second.to(dtype)
