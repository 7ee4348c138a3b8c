"""ASTRA's own projectors on NVIDIA GPUs: no matrix, less memory, and an adjoint that is only nearly one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from learnreg.errors import ConfigError, OperatorError
from learnreg.linear.operator import LinearOperator, linear_map
from learnreg.operators.tomography.astra_matrix import require
from learnreg.operators.tomography.geometry import FanGeometry, Geometry, view_angles
from learnreg.operators.tomography.rays import view_vectors

__all__ = ["ConeBeam3D", "CudaProjector"]

_PROBES = 3


def require_cuda(what: str) -> Any:
    """The module astra, or OperatorError where it cannot use a GPU: its projectors would end the process."""
    astra = require("astra", "the ASTRA toolbox")
    if not astra.use_cuda():
        raise OperatorError(
            f"{what} needs an NVIDIA GPU and a build of the ASTRA toolbox with CUDA; astra.use_cuda() is False here. "
            "Two-dimensional scans work without: leave backend at 'auto'.",
            "device",
        )
    return astra


class MatchedScale:
    """An approximate adjoint, scaled so that <A x, y> = <x, B y> for one positive pair, and how far it still is off.

    ``mismatch``: largest |<A x, y> - <x, B y>| / (‖A x‖ ‖y‖) over random pairs; an *estimate*.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        backward: Callable[[Tensor], Tensor],
        domain: tuple[int, ...],
        range_: tuple[int, ...],
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.scale, self.mismatch = 1.0, 0.0
        for probe in range(_PROBES + 1):
            draw = torch.rand if probe == 0 else torch.randn
            x, y = (draw(1, *shape, generator=generator) for shape in (domain, range_))
            image = forward(x)
            left, right = float((image * y).double().sum()), float((x * backward(y)).double().sum())
            if probe == 0:
                self.scale = left / right if right else 1.0
            else:
                size = float(image.double().norm() * y.double().norm())
                self.mismatch = max(self.mismatch, abs(left - self.scale * right) / size if size else 0.0)
        self.mismatch = max(self.mismatch, torch.finfo(torch.float32).eps)


class CudaProjector(nn.Module):
    """A two-dimensional geometry in ASTRA's CUDA projector; one image at a time, in float32."""

    nbytes = 0

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        if isinstance(geometry, FanGeometry) and geometry.curved:
            raise ConfigError("backend='astra-cuda' knows flat detectors only; leave backend at 'auto'.")
        self._astra_or_error()
        self.geometry = geometry
        n, range_ = geometry.image_size, (len(geometry.angles), geometry.detectors)
        self.matched = MatchedScale(
            lambda x: self._project(x[0])[None], lambda y: self._back_project(y[0])[None], (n, n), range_
        )

    @staticmethod
    def _astra_or_error() -> Any:
        return require_cuda("backend='astra-cuda'")

    def mismatch(self) -> float:
        return self.matched.mismatch

    def apply_to(self, images: Tensor) -> Tensor:
        """A x for x (batch, pixels); returns (batch, rays)."""
        n = self.geometry.image_size
        return torch.stack([self._project(x.reshape(n, n)).flatten() for x in images]).to(images)

    def apply_transpose_to(self, sinograms: Tensor) -> Tensor:
        """Nearly A^T y for y (batch, rays); returns (batch, pixels)."""
        shape = (len(self.geometry.angles), self.geometry.detectors)
        images = [self._back_project(y.reshape(shape)).flatten() for y in sinograms]
        return torch.stack(images).to(sinograms) * self.matched.scale

    def _project(self, image: Tensor) -> Tensor:
        return self._run("create_sino", image)

    def _back_project(self, sinogram: Tensor) -> Tensor:
        return self._run("create_backprojection", sinogram)

    def _run(self, function: str, data: Tensor) -> Tensor:
        astra, n = self._astra_or_error(), self.geometry.image_size
        pixels = self.geometry.in_pixels()
        kind = "fanflat_vec" if isinstance(pixels, FanGeometry) else "parallel_vec"
        scan = astra.create_proj_geom(kind, pixels.detectors, view_vectors(pixels, pixels.angles, pixels.detectors))
        projector = astra.create_projector("cuda", scan, astra.create_vol_geom(n, n))
        try:
            handle, result = getattr(astra, function)(data.detach().float().cpu().numpy(), projector)
            astra.data2d.delete(handle)
        finally:
            astra.projector.delete(projector)
        return torch.from_numpy(result) * self.geometry.pixel_size


class ConeBeam3D(LinearOperator):
    """Cone-beam projector of a cube with side 1 by ASTRA on an NVIDIA GPU; (1, n, n, n) to (1, angles, rows, columns).

    Parameters
    ----------
    image_size: n; axes are z, y, x and the axis of rotation is z. angles: their number, uniform on [0, 2 pi), or 1-D
        radians. detectors: rows and columns of the flat detector, at pitch 1/n; by default the smallest odd number >=
        sqrt(2) n times the magnification, for both. source_to_center, source_to_detector: in sides of the cube.

    ASTRA's back-projection is not its projector's exact adjoint: ``adjoint_mismatch`` is positive, and nothing is
    certified with it.

    Raises
    ------
    OperatorError: no GPU that ASTRA can use. ConfigError: no angles, a source inside the cube, or astra is missing.
    """

    def __init__(
        self,
        image_size: int,
        angles: int | Tensor,
        detectors: int | None = None,
        source_to_center: float = 2.0,
        source_to_detector: float = 4.0,
    ) -> None:
        require_cuda("ConeBeam3D")
        if not math.sqrt(0.5) < source_to_center <= source_to_detector:
            raise ConfigError(
                f"ConeBeam3D(source_to_center={source_to_center:g}, source_to_detector={source_to_detector:g}): "
                "expected sqrt(1/2) < source_to_center <= source_to_detector, in sides of the cube."
            )
        self.angles = view_angles(angles, 2 * math.pi, "ConeBeam3D")
        magnification = source_to_detector / source_to_center
        count = math.ceil(math.sqrt(2.0) * image_size * magnification) if detectors is None else detectors
        count += 1 - count % 2 if detectors is None else 0
        super().__init__((1, image_size, image_size, image_size), (1, len(self.angles), count, count))
        self.source_to_center, self.source_to_detector = source_to_center, source_to_detector
        self.matched = MatchedScale(self._project, self._back_project, self.domain_shape, self.range_shape)

    def forward(self, x: Tensor) -> Tensor:
        self.check_domain(x)
        return linear_map(x, self._project, self._scaled_back_projection)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_range(y)
        return linear_map(y, self._scaled_back_projection, self._project)

    def adjoint_mismatch(self) -> float:
        return self.matched.mismatch

    def _project(self, x: Tensor) -> Tensor:
        views = [self._run("create_sino3d_gpu", volume[0]).transpose(0, 1)[None] for volume in x]
        return torch.stack(views).to(x)

    def _back_project(self, y: Tensor) -> Tensor:
        volumes = [self._run("create_backprojection3d_gpu", views[0].transpose(0, 1))[None] for views in y]
        return torch.stack(volumes).to(y)

    def _scaled_back_projection(self, y: Tensor) -> Tensor:
        return self._back_project(y) * self.matched.scale

    def _run(self, function: str, data: Tensor) -> Tensor:
        """ASTRA in units of voxels; projections are (rows, angles, columns) there."""
        astra, n = require_cuda("ConeBeam3D"), self.domain_shape[1]
        source = n * self.source_to_center
        behind = n * self.source_to_detector - source
        count = self.range_shape[-1]
        scan = astra.create_proj_geom("cone", 1.0, 1.0, count, count, self.angles, source, behind)
        array = data.detach().float().cpu().contiguous().numpy()
        handle, result = getattr(astra, function)(array, scan, astra.create_vol_geom(n, n, n))
        astra.data3d.delete(handle)
        return torch.from_numpy(result) / n
