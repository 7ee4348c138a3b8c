"""The linear operator of total generalised variation: what an image's differences leave of a field beside it, and the
field's own differences.

    (x, w)  ->  (L_1 * D_1 x - L_1 * w_1,  L_2 * D_2 x - L_2 * w_2,  0)                               of K groups
                (M_1 * D_1 w_1,  M_2 * D_2 w_2,  M_3 * (D_2 w_1 + D_1 w_2)/sqrt(2))                    of J groups

D_1 and D_2 are forward differences down and across, so that the length of a group of the second kind is the Frobenius
norm of the symmetrised derivative.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from learnreg.convolutions.filter_bank import FilterBank, padding_norm
from learnreg.convolutions.local_gram import local_gram
from learnreg.convolutions.local_norm import local_norm_bound
from learnreg.convolutions.padding import Boundary
from learnreg.linear.norms import NormBound, gram_norm_bound, power_estimate
from learnreg.linear.operator import LinearOperator

__all__ = ["SecondOrderOperator"]

_GRID, _LOOSE, _DENSE = 64, 1.45, 1024


class SecondOrderOperator(LinearOperator):
    """K on (batch, 3, height, width): the image x, then w_1 and w_2 over ``scale``: w = scale times what the operator
    gets. Range (3, K + J, rows, columns), the members of groups first.

    Parameters
    ----------
    image_filters: of L_1 * D_1 and L_2 * D_2, (2, K, k, k). first: L_1 and L_2 on the same grid, (2, K, k, k). second:
        of M_1 * D_1 and M_2 * D_2, (2, J, k, k). mixed: of M_3 * D_2 and M_3 * D_1, (2, J, k, k).
    image_shape: (1, height, width). boundary: as in :class:`FilterBank`. scale: > 0.
    """

    def __init__(
        self,
        image_filters: Tensor,
        first: Tensor,
        second: Tensor,
        mixed: Tensor,
        image_shape: tuple[int, ...],
        boundary: Boundary,
        scale: float = 1.0,
    ) -> None:
        self._filters = (image_filters, first, second, mixed)
        of_fields = torch.cat([-first, second, math.sqrt(0.5) * mixed], 1)
        image = FilterBank(image_filters.flatten(0, 1), image_shape, boundary)
        self._first, self._second = int(first.shape[1]), int(second.shape[1])
        super().__init__((3, *image_shape[1:]), (3, self._first + self._second, *image.range_shape[1:]))
        self.image = image
        self.fields = torch.nn.ModuleList(FilterBank(filters, image_shape, boundary) for filters in of_fields)
        self.scale = float(scale)

    def at(self, scale: float) -> SecondOrderOperator:
        """The same with another scale. The banks are shared, so that their norms are found once."""
        _, height, width = self.domain_shape
        other = SecondOrderOperator(*self._filters, (1, height, width), self.image.boundary, scale)
        other.image, other.fields = self.image, self.fields
        return other

    def forward(self, x: Tensor) -> Tensor:
        K, J = self._first, self._second
        of_image, fields = self._of_parts(x)
        lengths = [torch.cat([of_image[:, :K] + fields[0][:, :K], fields[0][:, K : K + J]], 1)]
        lengths.append(torch.cat([of_image[:, K:] + fields[1][:, :K], fields[1][:, K : K + J]], 1))
        mixed = fields[0][:, K + J :] + fields[1][:, K + J :]
        lengths.append(torch.cat([torch.zeros_like(of_image[:, :K]), mixed], 1))
        return torch.stack(lengths, 1)

    def forward_into(self, x: Tensor, out: Tensor) -> Tensor:
        K, J = self._first, self._second
        of_image, fields = self._of_parts(x)
        for i, field in enumerate(fields):
            torch.add(of_image[:, i * K : (i + 1) * K], field[:, :K], out=out[:, i, :K])
            out[:, i, K:].copy_(field[:, K : K + J])
        out[:, 2, :K].zero_()
        torch.add(fields[0][:, K + J :], fields[1][:, K + J :], out=out[:, 2, K:])
        return out

    def _of_parts(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Responses to the image, and to each part of the field."""
        image: Tensor = self.image(x[:, :1])
        field = self.scale * x[:, 1:]
        return image, [bank(field[:, i : i + 1]) for i, bank in enumerate(self.fields)]

    def adjoint(self, y: Tensor) -> Tensor:
        K = self._first
        image = self.image.adjoint(torch.cat([y[:, 0, :K], y[:, 1, :K]], 1))
        fields: list[Any] = list(self.fields)
        pulled = [bank.adjoint(torch.cat([y[:, i], y[:, 2, K:]], 1)) for i, bank in enumerate(fields)]
        return torch.cat([image, *(self.scale * field for field in pulled)], 1)

    def _banks(self) -> list[FilterBank]:
        """Those of the image and, before they are scaled, of both parts of the field."""
        return [self.image, *self.fields]

    def _columns(self) -> list[NormBound]:
        """Norms of what belongs to the image and to both parts of the field."""
        image, *fields = (bank.norm() for bank in self._banks())
        return [image, *(field.scaled(self.scale) for field in fields)]

    def _find_norm(self) -> NormBound:
        """That of the dense Gram matrix for small images; else the largest singular value over all frequencies. Where
        pixels are repeated, that times the norm of the padding, or the norms of the columns, or what the row sums of a
        small image say."""
        device, repeat = self.image.filters.device, padding_norm(self.image)
        gram = lambda v: self.adjoint(self(v))  # noqa: E731
        if math.prod(self.domain_shape) <= _DENSE:
            return NormBound(gram_norm_bound(local_gram(self, self.image.filter_shape, device)))
        bound = self._symbol_bound() * repeat
        if repeat > 1.0 and bound > _LOOSE * power_estimate(gram, self.domain_shape, device=device, steps=20):
            sides = (self.domain_shape[1], self.domain_shape[2])
            bound = min(bound, local_norm_bound(self._resized, self.image.filter_shape, sides, device))
            columns = self._columns()
            if all(column.kind == "rigorous" for column in columns):
                bound = min(bound, math.hypot(*(column.value for column in columns)))
        return NormBound(bound)

    def _resized(self, sides: tuple[int, ...]) -> SecondOrderOperator:
        """On images of other sides, in float64 and without parameters."""
        image, first, second, mixed = (f.detach().double() for f in self._filters)
        return SecondOrderOperator(image, first, second, mixed, (1, *sides), self.image.boundary, self.scale)

    def _symbol_bound(self) -> float:
        """The largest singular value of the 3 columns over all frequencies, and so the norm on every torus and of every
        part of one: from a grid of frequencies, between which squares, trigonometric polynomials of degree k - 1, are
        at most 1/cos²(pi (k - 1)/grid) larger (Ehlich and Zeller, Math. Z. 86, 1964). *Rigorous bound.*"""
        degree = max(self.image.filter_shape) - 1
        grid = max(_GRID, 2 ** math.ceil(math.log2(8 * (degree + 1))))
        K, J = self._first, self._second
        image, *fields = (torch.fft.rfft2(bank.filters.detach().double(), s=(grid, grid)) for bank in self._banks())
        fields = [self.scale * field for field in fields]
        first, second, mixed = zip(*((f[:K], f[K : K + J], f[K + J :]) for f in fields), strict=True)
        no_first, no_second = torch.zeros_like(first[0]), torch.zeros_like(second[0])
        rows = torch.cat(
            [
                torch.stack([image[:K], first[0], no_first]),
                torch.stack([image[K:], no_first, first[1]]),
                torch.stack([no_second, second[0], no_second]),
                torch.stack([no_second, no_second, second[1]]),
                torch.stack([no_second, mixed[0], mixed[1]]),
            ],
            1,
        )
        gram = torch.einsum("anij,bnij->ijab", rows.conj(), rows)
        largest = float(torch.linalg.eigvalsh(gram).max())
        return math.sqrt(max(largest, 0.0)) / math.cos(math.pi * degree / grid) * (1.0 + 1e-12)

    def balance(self) -> float:
        """The scale at which image and field have parts of the same norm, about."""
        image, *fields = (bank.norm_bound() for bank in self._banks())
        return image / max(fields) if image > 0 else 1.0

    def gram_diagonal(self, weights: Tensor) -> Tensor | None:
        """Repeated pixels count as different ones."""
        K = self._first
        columns = [torch.cat([weights[:, 0, :K], weights[:, 1, :K]], 1)]
        columns += [torch.cat([weights[:, i], weights[:, 2, K:]], 1) for i in range(2)]
        found = []
        factors = (1.0, self.scale**2, self.scale**2)
        for bank, part, factor in zip(self._banks(), columns, factors, strict=True):
            squares = FilterBank(bank.filters.detach().square(), self.image.domain_shape, bank.boundary)
            found.append(factor * squares.adjoint(part))
        return torch.cat(found, 1)

    def parameter_lipschitz(self) -> float | None:
        """Of all filters together: that of a bank times ‖x‖ or scale ‖w_i‖, whose squares add up."""
        known = [bank.parameter_lipschitz() for bank in self._banks()]
        return max(1.0, self.scale) * max(c for c in known if c is not None)
