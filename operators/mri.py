"""Magnetic resonance imaging on Cartesian lines of k-space, with one coil or several."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from learnreg.errors import OperatorError, ShapeError
from learnreg.linear.arguments import check_dense, given_tensor
from learnreg.linear.complex_channels import as_channels, as_complex
from learnreg.linear.norms import NormBound
from learnreg.linear.operator import LinearOperator

__all__ = ["CartesianMRI", "from_kspace", "to_kspace"]

_PLANE = (-2, -1)
_MARGIN = 1e-13
"""Relative, of sums and transforms in float64."""
_LOOSER = 1.25
"""What it may cost that a bound of the norm is rigorous."""


def to_kspace(image: Tensor) -> Tensor:
    """The orthonormal discrete Fourier transform of complex images (..., H, W), with the frequency zero and the origin
    of the image at (H // 2, W // 2): the convention of k-space files."""
    transformed: Tensor = torch.fft.fftshift(
        torch.fft.fft2(torch.fft.ifftshift(image, dim=_PLANE), norm="ortho"), dim=_PLANE
    )
    return transformed


def from_kspace(kspace: Tensor) -> Tensor:
    """The inverse of :func:`to_kspace`, which is its adjoint."""
    image: Tensor = torch.fft.fftshift(
        torch.fft.ifft2(torch.fft.ifftshift(kspace, dim=_PLANE), norm="ortho"), dim=_PLANE
    )
    return image


class CartesianMRI(LinearOperator):
    """A x = (mask · F(s_c x))_c over the coils c, with the centred orthonormal Fourier transform F
    (:func:`to_kspace`); complex numbers are two channels, real and imaginary part
    (``learnreg.operators.as_channels`` and ``as_complex``).

    Parameters
    ----------
    mask: (H, W), or (W,) for lines along the first axis of the image: 1 (or True) where k-space is measured, 0 where it
        is not, or any finite weights; frequency zero at (H // 2, W // 2). An nn.Parameter is learnable and appears in
        hypergradients as ``operator.mask``; a mask (W,) is one number for each line.
    coil_sensitivities: complex (coils, H, W), or None for a single coil that sees everything alike.
    domain_shape: (2, H, W); needed for a mask (W,) without coils alone.

    The domain is (2, H, W), the range (2, H, W) with one coil and (2, coils, H, W) with sensitivities; zero where
    nothing is measured. Without sensitivities norm and ``gram_lower_bound`` are exact. With them ‖A‖² is bounded by
    max mask² · max sum_c |s_c|², unless a power method finds a much smaller norm (few lines, uneven coils: the bound is
    probabilistic then), and ``gram_lower_bound`` is min mask² · min sum_c |s_c|². *Rigorous bounds*, like the exact
    norms of rows.

    Source: Pruessmann, Weiger, Scheidegger and Boesiger, SENSE: sensitivity encoding for fast MRI (1999).

    Raises
    ------
    ShapeError: mask and sensitivities of shapes that do not fit each other.
    OperatorError: entries that are not finite, complex weights, sensitivities that are real.

    Examples
    --------
    >>> A = lr.operators.CartesianMRI(lr.datasets.cartesian_mask(8), domain_shape=(2, 8, 8))
    >>> A.domain_shape, A.range_shape
    ((2, 8, 8), (2, 8, 8))
    """

    mask: Tensor
    coil_sensitivities: Tensor | None

    def __init__(
        self, mask: Tensor, coil_sensitivities: Tensor | None = None, domain_shape: tuple[int, ...] | None = None
    ) -> None:
        coils = None if coil_sensitivities is None else _checked_coils(coil_sensitivities)
        mask = _checked_mask(mask)
        sides = _sides(mask, coils, domain_shape)
        super().__init__((2, *sides), (2, *sides) if coils is None else (2, *coils.shape))
        if isinstance(mask, nn.Parameter):
            self.mask = mask
        else:
            self.register_buffer("mask", mask)
        parts = None if coils is None else torch.view_as_real(coils.detach().resolve_conj()).contiguous()
        self.register_buffer("coil_sensitivities", parts)  # real, so that .double() and .half() mean what they say

    def stored(self) -> dict[str, Any]:
        learnable = isinstance(self.mask, nn.Parameter)
        shape = list(self.domain_shape)
        coils = {} if self.coil_sensitivities is None else {"coil_sensitivities": self.coil_sensitivities}
        return {"config": {"mask": self.mask, "domain_shape": shape, "learnable": learnable, **coils}}

    @classmethod
    def from_stored(cls, stored: dict[str, Any], image_shape: tuple[int, ...] | None) -> Self:
        config = stored["config"]
        mask = nn.Parameter(config["mask"]) if config["learnable"] else config["mask"]
        coils = config.get("coil_sensitivities")
        return cls(
            mask, None if coils is None else torch.view_as_complex(coils.contiguous()), tuple(config["domain_shape"])
        )

    def forward(self, x: Tensor) -> Tensor:
        self.check_domain(x)
        if not len(x):  # the libraries transform nothing but that
            return x.new_zeros(0, *self.range_shape)
        image, coils = as_complex(x), self._coils(x)
        return self.mask.to(x) * as_channels(to_kspace(image if coils is None else coils * image[:, None]))

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_range(y)
        if not len(y):
            return y.new_zeros(0, *self.domain_shape)
        images, coils = from_kspace(as_complex(self.mask.to(y) * y)), self._coils(y)
        return as_channels(images if coils is None else (coils.conj() * images).sum(1))

    def approximate_inverse(self, y: Tensor) -> Tensor:
        """Zero-filled, divided by sum_c |s_c|² where coils see anything."""
        energy = self._energy().to(y)
        return self.adjoint(y) / torch.where(energy > 1e-6 * energy.max(), energy, torch.ones_like(energy))

    def _coils(self, like: Tensor) -> Tensor | None:
        parts = self.coil_sensitivities
        return None if parts is None else torch.view_as_complex(parts.to(like))

    def _energy(self) -> Tensor:
        """sum_c |s_c|², (H, W) in float64; of one number without coils."""
        parts = self.coil_sensitivities
        return torch.ones((), dtype=torch.float64) if parts is None else parts.double().square().sum((0, -1))

    def _extremes(self) -> tuple[float, float]:
        """Lower and upper bound of the eigenvalues of A^T A."""
        power, energy = self.mask.detach().double().square(), self._energy()
        lowest, highest = float(power.min() * energy.min()), float(power.max() * energy.max())
        return lowest * (1.0 - _MARGIN), highest * (1.0 + _MARGIN)

    def _find_norm(self) -> NormBound:
        rigorous = NormBound(math.sqrt(self._extremes()[1]))
        if self.coil_sensitivities is None:
            return rigorous
        found = super()._find_norm()
        return rigorous if rigorous.value <= _LOOSER * found.value else found

    @torch.no_grad()
    def gram_lower_bound(self) -> float:
        return self._extremes()[0]

    def row_norms(self, grouped: bool) -> Tensor | float:
        """Exact: |mask_k| ‖s_c‖ / √(H W), for the real and the imaginary part of a frequency alike, which are
        orthogonal."""
        weights = self.mask.detach().double().abs() * (1.0 + _MARGIN)
        if self.coil_sensitivities is not None:
            energy = self.coil_sensitivities.double().square().sum((1, 2, 3)) / math.prod(self.domain_shape[1:])
            weights = energy.sqrt()[:, None, None] * weights
        return weights.expand(self.range_shape[1:]) if grouped else weights.expand(self.range_shape)

    def parameter_lipschitz(self) -> float | None:
        """Of a learned mask: ‖∂_mask <A u, p>‖ = ‖(Re conj(p) · F(s u))‖, summed over coils and, for lines, along
        them."""
        if not self.mask.requires_grad:
            return 0.0
        return math.sqrt(float(self._energy().max())) * (1.0 + _MARGIN)


def _checked_mask(mask: Tensor) -> Tensor:
    if isinstance(mask, Tensor) and mask.is_complex():
        raise OperatorError("CartesianMRI(mask): got complex weights, expected real ones.", "real")
    mask = given_tensor(mask, "CartesianMRI(mask)")
    if mask.dim() not in (1, 2):
        raise ShapeError(f"CartesianMRI(mask): got {tuple(mask.shape)}, expected a tensor (H, W), or (W,) for lines.")
    if not mask.is_floating_point():
        mask = mask.to(torch.get_default_dtype())
    if not bool(torch.isfinite(mask).all()):
        raise OperatorError("CartesianMRI(mask): NaN or infinite entries.", "finite")
    return mask


def _checked_coils(coils: Tensor) -> Tensor:
    check_dense(coils, "CartesianMRI(coil_sensitivities)", "of complex numbers (coils, H, W)")
    if coils.dim() != 3:
        raise ShapeError(
            f"CartesianMRI(coil_sensitivities): got {tuple(coils.shape)}, expected complex numbers (coils, H, W)."
        )
    if not coils.is_complex():
        raise OperatorError(
            f"CartesianMRI(coil_sensitivities): got {coils.dtype}, expected complex numbers; real maps are "
            "coils.to(torch.complex64).",
            "complex",
        )
    if coils.requires_grad:
        raise OperatorError(
            "CartesianMRI(coil_sensitivities): they require a gradient, and are fixed here: call .detach().", "fixed"
        )
    if not bool(torch.isfinite(torch.view_as_real(coils.resolve_conj())).all()):
        raise OperatorError("CartesianMRI(coil_sensitivities): NaN or infinite entries.", "finite")
    return coils


def _sides(mask: Tensor, coils: Tensor | None, domain_shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """(H, W) of the image, on which all that was given agrees."""
    wanted = None if domain_shape is None else tuple(domain_shape)
    if wanted is not None and (len(wanted) != 3 or wanted[0] != 2):
        raise ShapeError(f"CartesianMRI(domain_shape={wanted}): expected (2, H, W), real and imaginary part.")
    known = [tuple(coils.shape[1:])] if coils is not None else []
    known += [wanted[1:]] if wanted is not None else []
    known += [tuple(mask.shape)] if mask.dim() == 2 else []
    if not known:
        raise ShapeError(
            f"CartesianMRI(mask): {mask.shape[0]} lines do not tell how long they are; give domain_shape=(2, H, W)."
        )
    if any(sides != known[0] for sides in known) or known[0][1] != mask.shape[-1]:
        given = {"mask": tuple(mask.shape), "coil_sensitivities": None if coils is None else tuple(coils.shape)}
        raise ShapeError(f"CartesianMRI: {given}, domain_shape={wanted} are not of one image (H, W).")
    return known[0]
