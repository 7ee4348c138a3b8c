"""Sampling of the Fourier transform: magnetic resonance imaging with one coil."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from learnreg.errors import OperatorError, ShapeError
from learnreg.linear.arguments import given_tensor
from learnreg.linear.norms import NormBound
from learnreg.linear.operator import LinearOperator

__all__ = ["FourierSampling"]


class FourierSampling(LinearOperator):
    """A x = mask · F x with the orthonormal discrete Fourier transform F; complex numbers are two channels, real and
    imaginary part.

    Parameters
    ----------
    mask: (H, W), 1 (or True) where a frequency is measured and 0 where it is not, or any finite weights, in the order
        of torch.fft.fft2: frequency zero first (torch.fft.ifftshift brings a centred mask there). An nn.Parameter is
        learnable and appears in hypergradients as ``operator.mask``.
    domain_shape: (1, H, W), real images (default), or (2, H, W), complex ones.

    The range is (2, H, W), zero where nothing is measured. A^T A is a convolution whose eigenvalues are mask_k² for
    complex images and (mask_k² + mask_-k²) / 2 for real ones: ``norm_bound`` and ``gram_lower_bound`` are exact.

    Raises
    ------
    ShapeError: a mask or a domain of another shape.
    OperatorError: a mask that is complex or not finite.

    Examples
    --------
    >>> lr.operators.FourierSampling(torch.ones(8, 8)).range_shape
    (2, 8, 8)
    """

    mask: Tensor

    def __init__(self, mask: Tensor, domain_shape: tuple[int, ...] | None = None) -> None:
        if isinstance(mask, Tensor) and mask.is_complex():
            raise OperatorError("FourierSampling(mask): got complex weights, expected real ones.", "real")
        mask = given_tensor(mask, "FourierSampling(mask)")
        if mask.dim() != 2:
            raise ShapeError(f"FourierSampling(mask): got {tuple(mask.shape)}, expected a tensor (H, W).")
        if not mask.is_floating_point():
            mask = mask.to(torch.get_default_dtype())
        if not bool(torch.isfinite(mask).all()):
            raise OperatorError("FourierSampling(mask): NaN or infinite entries.", "finite")
        sides = tuple(mask.shape)
        shape = (1, *sides) if domain_shape is None else tuple(domain_shape)
        if shape not in ((1, *sides), (2, *sides)):
            raise ShapeError(
                f"FourierSampling(domain_shape={shape}): expected {(1, *sides)} for real or {(2, *sides)} for complex "
                f"images, the mask being {sides}."
            )
        super().__init__(shape, (2, *sides))
        if isinstance(mask, nn.Parameter):
            self.mask = mask
        else:
            self.register_buffer("mask", mask)

    def stored(self) -> dict[str, Any]:
        learnable = isinstance(self.mask, nn.Parameter)
        return {"config": {"mask": self.mask, "domain_shape": list(self.domain_shape), "learnable": learnable}}

    @classmethod
    def from_stored(cls, stored: dict[str, Any], image_shape: tuple[int, ...] | None) -> Self:
        config = stored["config"]
        mask = nn.Parameter(config["mask"]) if config["learnable"] else config["mask"]
        return cls(mask, tuple(config["domain_shape"]))

    def forward(self, x: Tensor) -> Tensor:
        self.check_domain(x)
        if not len(x):  # the libraries transform nothing but that
            return x.new_zeros(0, *self.range_shape)
        spectrum = torch.fft.fft2(self._complex(x), norm="ortho")
        return self.mask.to(x) * torch.stack([spectrum.real, spectrum.imag], dim=1)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_range(y)
        if not len(y):
            return y.new_zeros(0, *self.domain_shape)
        image = torch.fft.ifft2(self._complex(self.mask.to(y) * y), norm="ortho")
        return image.real[:, None].clone() if self._is_real else torch.stack([image.real, image.imag], dim=1)

    def _complex(self, x: Tensor) -> Tensor:
        return x[:, 0] if x.shape[1] == 1 else torch.complex(x[:, 0], x[:, 1])

    @property
    def _is_real(self) -> bool:
        return self.domain_shape[0] == 1

    def eigenvalues(self) -> Tensor:
        """Those of A^T A, (H, W) in float64, one per frequency."""
        power = self.mask.detach().double().square()
        if not self._is_real:
            return power
        mirrored = power.flip(0, 1).roll((1, 1), (0, 1))  # the value at -k
        return 0.5 * (power + mirrored)

    def _find_norm(self) -> NormBound:
        return NormBound(math.sqrt(float(self.eigenvalues().max())) * (1.0 + 1e-15))

    @torch.no_grad()
    def gram_lower_bound(self) -> float:
        return float(self.eigenvalues().min()) * (1.0 - 1e-15)

    def row_norms(self, grouped: bool) -> Tensor | float:
        """Exact: a row of the real or imaginary part of a frequency that is not its own mirror image has half the
        energy."""
        norms = self.mask.detach().double().abs() * (1.0 + 1e-14)
        if not self._is_real:
            return norms.expand(self.range_shape)
        own = self._own_mirror()
        half = norms * math.sqrt(0.5)
        real = torch.where(own, norms, half)
        imaginary = real if grouped else torch.where(own, torch.zeros_like(norms), half)
        return torch.stack([real, imaginary])

    def _own_mirror(self) -> Tensor:
        """(H, W) bool: the frequencies k with k = -k."""
        rows, cols = (torch.arange(n, device=self.mask.device) for n in self.mask.shape)
        height, width = self.mask.shape
        return ((2 * rows) % height == 0)[:, None] & ((2 * cols) % width == 0)[None, :]

    def parameter_lipschitz(self) -> float | None:
        """1 for a learned mask: ‖∂_mask <A u, p>‖ = ‖Re(conj(p) · F u)‖ <= ‖u‖ ‖p‖."""
        return 1.0 if self.mask.requires_grad else 0.0
