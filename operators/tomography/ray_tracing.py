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

_BORDER = (0, 0, 1, 1)
"""Of a pixel at both ends of every row, for rays that meet only one of a pair."""

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
    ConfigError: another kernel. OperatorError: an image of more than 8,192² pixels.
    """

    bits: Tensor

    def __init__(self, geometry: Geometry, kernel: Kernel) -> None:
        if kernel == "strip":
            raise ConfigError(
                "backend='matrix-free' has the kernels 'linear' and 'line'; use backend='matrix' for 'strip'."
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
            _project(torch.nn.functional.pad(images.transpose(0, 1) if flat else images, _BORDER), part, out[rays])
        return out

    def _from_rays(self, y: Tensor) -> Tensor:
        n, result = self.geometry.image_size, None
        for flat, rays, part in self._parts():
            bordered = y.new_zeros(n, n + 2, y.shape[1])
            _back_project(y[rays].contiguous(), part, bordered)
            images = bordered[:, 1:-1].transpose(0, 1) if flat else bordered[:, 1:-1]
            result = images if result is None else result.add_(images)
            del bordered
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
            for chosen, pixel, first, second in _weights(part, n, 1, torch.float64):
                seen = torch.where(pixel % (n + 2) > 0, first, 0.0), torch.where(pixel % (n + 2) < n, second, 0.0)
                squares[rays][chosen] = seen[0].square().sum(1) + seen[1].square().sum(1)
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
    """Add the sums along rays, (rays, columns), of images (rows, pixels, columns) with borders to ``out``."""
    kernels = kernels_for("rays", images, out, *part)
    if kernels is not None:
        kernel = kernels.project_wide if images.shape[2] >= _WIDE else kernels.project
        arrays = [t.numpy() for t in (images, *part)]
        in_parts(lambda first, stop: kernel(*arrays, first, stop, out.numpy()), len(out), len(out) * images[0].numel())
        return
    n, _, columns = images.shape
    flat = images.reshape(-1, columns)
    for chosen, pixel, first, second in _weights(part, n, columns, images.dtype):
        sums = flat[pixel] * first[..., None]
        sums += flat[pixel + 1] * second[..., None]
        out[chosen] += sums.sum(1)


def _back_project(sums: Tensor, part: _Part, out: Tensor) -> None:
    """Add what rays give the images (rows, pixels, columns) with borders to ``out``."""
    kernels = kernels_for("rays", sums, out, *part)
    if kernels is not None:
        kernel = kernels.back_project_wide if out.shape[2] >= _WIDE else kernels.back_project
        arrays = [t.numpy() for t in (sums, *part)]
        in_parts(
            lambda first, stop: kernel(*arrays, first, stop, out.numpy()), len(out), len(sums) * out[0].numel(), 16
        )
        return
    n, _, columns = out.shape
    flat = out.reshape(-1, columns)
    for chosen, pixel, first, second in _weights(part, n, columns, out.dtype):
        values = sums[chosen][:, None]
        flat.index_add_(0, pixel.flatten(), (values * first[..., None]).reshape(-1, columns))
        flat.index_add_(0, pixel.flatten() + 1, (values * second[..., None]).reshape(-1, columns))


def _weights(part: _Part, n: int, columns: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Some rays after the other: which, the first pixels of the pairs that they meet in each row, (rays, n) numbers in
    the image with borders, and the weights of both; as ``kernels.rays`` computes them."""
    rows = torch.arange(n, device=part.offsets.device)
    step = max(1, _AT_ONCE // (n * columns))
    for start in range(0, len(part.offsets), step):
        chosen = slice(start, start + step)
        offsets, slopes, gaps, inverses = (t[chosen, None] for t in part)
        t = offsets + rows * slopes
        pixel = (t + 1.0).floor().clamp(0.0, n)
        share = ((t + 1.0 - pixel - gaps).clamp_min(0.0) * inverses).clamp_max(1.0)
        inside = (t > -1.0) & (t < n)
        first, second = torch.where(inside, 1.0 - share, 0.0), torch.where(inside, share, 0.0)
        yield chosen, rows * (n + 2) + pixel.long(), first.to(dtype), second.to(dtype)
