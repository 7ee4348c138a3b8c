"""Blur: correlation of an image with one kernel, the range being the domain."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from learnreg.convolutions.correlation import correlate, correlate_adjoint
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.padding import Boundary, pad, pad_adjoint
from learnreg.errors import OperatorError, ShapeError
from learnreg.linear.arguments import check_one_of, given_tensor
from learnreg.linear.norms import NormBound
from learnreg.linear.operator import LinearOperator
from learnreg.linear.shapes import checked_shape

__all__ = ["Blur"]


class Blur(LinearOperator):
    """Correlation with a kernel, on every channel alike.

    Parameters
    ----------
    kernel: tensor or NumPy array, (k, l) or (1, 1, k, l); an nn.Parameter is learnable and appears in hypergradients
        as ``operator.kernel``.
    domain_shape: (channels, H, W).
    boundary: "zero", "circular" or "reflect".

    ``gram_lower_bound`` is exact for "circular" (the smallest |FFT|²) and 0 otherwise: add a ridge then.

    Raises
    ------
    ShapeError: a kernel or a domain of another shape.
    OperatorError: a kernel with NaN or infinite entries.
    ConfigError: another boundary.

    Examples
    --------
    >>> A = lr.operators.Blur(torch.full((3, 3), 1 / 9), (1, 8, 8), boundary="reflect")
    >>> bool(torch.allclose(A(torch.ones(1, 1, 8, 8)), torch.ones(1, 1, 8, 8)))
    True
    """

    kernel: Tensor

    def __init__(self, kernel: Tensor, domain_shape: tuple[int, ...], boundary: Boundary = "zero") -> None:
        check_one_of(boundary, ("zero", "circular", "reflect"), "Blur(boundary)")
        kernel = given_tensor(kernel, "Blur(kernel)")
        if kernel.dim() not in (2, 4) or (kernel.dim() == 4 and tuple(kernel.shape[:2]) != (1, 1)):
            raise ShapeError(f"Blur(kernel): got shape {tuple(kernel.shape)}, expected (k, k) or (1, 1, k, k).")
        domain_shape = checked_shape(domain_shape, "Blur(domain_shape)")
        if len(domain_shape) != 3:
            raise ShapeError(f"Blur(domain_shape={domain_shape}): expected (channels, height, width).")
        if not kernel.is_floating_point():
            kernel = kernel.to(torch.get_default_dtype())
        if not bool(torch.isfinite(kernel).all()):
            raise OperatorError("Blur(kernel): NaN or infinite entries.", "finite")
        super().__init__(domain_shape, domain_shape)
        if isinstance(kernel, nn.Parameter):
            self.kernel = kernel
        else:
            self.register_buffer("kernel", kernel)
        self.boundary = boundary
        self._bank()

    def on(self, domain_shape: tuple[int, ...]) -> Blur:
        return Blur(self.kernel, domain_shape, self.boundary)

    def stored(self) -> dict[str, Any]:
        learnable = isinstance(self.kernel, nn.Parameter)
        own = {"domain_shape": list(self.domain_shape), "boundary": self.boundary, "learnable": learnable}
        return {"config": {"kernel": self.kernel, **own}}

    @classmethod
    def from_stored(cls, stored: dict[str, Any], image_shape: tuple[int, ...] | None) -> Self:
        config = stored["config"]
        kernel = nn.Parameter(config["kernel"]) if config["learnable"] else config["kernel"]
        return cls(kernel, tuple(config["domain_shape"]), config["boundary"])

    @property
    def _sides(self) -> tuple[int, int]:
        return self.kernel.shape[-2], self.kernel.shape[-1]

    @property
    def _filters(self) -> Tensor:
        return self.kernel.reshape(1, *self._sides)

    def _bank(self) -> FilterBank:
        """The same as filters of a single channel, which knows norms and pairings."""
        return FilterBank(self._filters, (1, self.domain_shape[1], self.domain_shape[2]), self.boundary)

    def forward(self, x: Tensor) -> Tensor:
        self.check_domain(x)
        padded = pad(x.reshape(-1, 1, *self.domain_shape[1:]), self._sides, self.boundary)
        return correlate(padded, self._filters.to(x.dtype)).reshape(x.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_range(y)
        padded = correlate_adjoint(y.reshape(-1, 1, *self.domain_shape[1:]), self._filters.to(y.dtype))
        _, height, width = self.domain_shape
        return pad_adjoint(padded, self._sides, self.boundary, (height, width)).reshape(y.shape)

    def window(self) -> tuple[int, int] | None:
        return None if self.boundary == "circular" or self.domain_shape[0] > 1 else self._sides

    def _find_norm(self) -> NormBound:
        return self._bank().norm()

    def _find_nonnegative(self) -> bool:
        return bool((self.kernel >= 0).all())

    def gram_lower_bound(self) -> float:
        return self._bank().gram_lower_bound()

    def row_norms(self, grouped: bool) -> Tensor | float:
        return self.norm_bound() if grouped else float(torch.as_tensor(self._bank().row_norms(False)).max())

    def parameter_lipschitz(self) -> float | None:
        return self._bank().parameter_lipschitz()
