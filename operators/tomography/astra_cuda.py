"""ASTRA's own projectors on NVIDIA GPUs: no matrix, less memory, and an adjoint that is only nearly one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from learnreg.errors import ConfigError, OperatorError
from learnreg.operators.tomography.astra_matrix import require
from learnreg.operators.tomography.cone_tracing import ConeScan
from learnreg.operators.tomography.geometry import FanGeometry, Geometry
from learnreg.operators.tomography.rays import view_vectors

__all__ = ["CudaCone", "CudaProjector"]

_PROBES = 3


def require_cuda(what: str) -> Any:
    """The module astra, or OperatorError where it cannot use a GPU: its projectors would end the process."""
    astra = require("astra", "the ASTRA toolbox")
    if not astra.use_cuda():
        raise OperatorError(
            f"{what} needs an NVIDIA GPU and a build of the ASTRA toolbox with CUDA; astra.use_cuda() is False here. "
            "Leave the backend at its default, which works without.",
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


class CudaCone(nn.Module):
    """A cone-beam scan in ASTRA's CUDA projector; one volume at a time, in float32."""

    def __init__(self, scan: ConeScan) -> None:
        super().__init__()
        require_cuda("ConeBeam3D(backend='astra-cuda')")
        self.scan, n = scan, scan.n
        range_ = (1, len(scan.angles), scan.rows, scan.columns)
        self.matched = MatchedScale(self.apply_to, self._back_project, (1, n, n, n), range_)

    def mismatch(self) -> float:
        return self.matched.mismatch

    def apply_to(self, x: Tensor) -> Tensor:
        """A x for x (batch, 1, z, y, x); ASTRA counts y upwards."""
        views = [self._run("create_sino3d_gpu", volume[0].flip(1)).transpose(0, 1)[None] for volume in x]
        return torch.stack(views).to(x)

    def apply_transpose_to(self, y: Tensor) -> Tensor:
        """Nearly A^T y."""
        return self._back_project(y) * self.matched.scale

    def _back_project(self, y: Tensor) -> Tensor:
        volumes = [self._run("create_backprojection3d_gpu", v[0].transpose(0, 1)).flip(1)[None] for v in y]
        return torch.stack(volumes).to(y)

    def _run(self, function: str, data: Tensor) -> Tensor:
        """ASTRA in units of voxels; projections are (rows, angles, columns) there."""
        astra, scan, n = require_cuda("ConeBeam3D(backend='astra-cuda')"), self.scan, self.scan.n
        source, behind = n * scan.source_to_center, n * (scan.source_to_detector - scan.source_to_center)
        pitch = n * scan.pitch
        orbit = astra.create_proj_geom("cone", pitch, pitch, scan.rows, scan.columns, scan.angles, source, behind)
        array = data.detach().float().cpu().contiguous().numpy()
        handle, result = getattr(astra, function)(array, orbit, astra.create_vol_geom(n, n, n))
        astra.data3d.delete(handle)
        return torch.from_numpy(result) / n
