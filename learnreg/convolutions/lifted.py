"""The linear operator of a lifted network: what each layer's constraint says of the image and the features.

    (x, z_1, ..., z_L)  ->  (W_0 x - z_1,  U_1 z_1 + W_1 x - z_2,  ...,  U_{L-1} z_{L-1} + W_{L-1} x - z_L)

Source: Ehrhardt, Mukherjee and Wong, "A primal-dual algorithm for image reconstruction with input-convex neural network
regularizers", arXiv 2410.12441.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from learnreg.convolutions.filter_bank import FilterBank, weighted_norm_bound
from learnreg.convolutions.network_layers import mix, mix_adjoint, mixing_matrix
from learnreg.linear.norms import NormBound
from learnreg.linear.operator import LinearOperator

__all__ = ["LiftedOperator", "couple", "couple_adjoint", "coupling_norm", "squared_coupling"]


def couple(z: Tensor, mixing: Tensor) -> Tensor:
    """B z = (-z_1, U_1 z_1 - z_2, ...) for features (batch, L n, h, w), layer after layer. Differentiable."""
    if not len(mixing):
        return -z
    layers = torch.split(z, mixing.shape[1], 1)
    passed = [mix(z_, U) for z_, U in zip(layers, mixing, strict=False)]
    return torch.cat([-layers[0], *(p - z_ for p, z_ in zip(passed, layers[1:], strict=True))], 1)


def couple_adjoint(y: Tensor, mixing: Tensor) -> Tensor:
    """B^T y = (U_1^T y_2 - y_1, ..., -y_L). Differentiable."""
    if not len(mixing):
        return -y
    layers = torch.split(y, mixing.shape[1], 1)
    passed = [mix_adjoint(y_, U) for y_, U in zip(layers[1:], mixing, strict=True)]
    return torch.cat([*(p - y_ for p, y_ in zip(passed, layers, strict=False)), -layers[-1]], 1)


def squared_coupling(w: Tensor, mixing: Tensor) -> Tensor:
    """The diagonal of B^T diag(w) B: w_i + sum_j U_ji² w_j."""
    return -couple_adjoint(w, -mixing.square())


def coupling_norm(mixing: Tensor, features: int) -> float:
    """Bound of ‖B‖ on images of any size: the norm of its entries' sums over taps, in modulus where kernels have
    several. *Rigorous bound.*"""
    exact = mixing.detach().double()
    size = features * (len(exact) + 1)
    matrix = torch.eye(size, dtype=torch.float64) * (-1.0 if exact.shape[-1] == 1 else 1.0)
    for l, U in enumerate(mixing_matrix(exact)):
        matrix[(l + 1) * features : (l + 2) * features, l * features : (l + 1) * features] = U.cpu()
    return float(torch.linalg.matrix_norm(matrix, 2)) * (1.0 + 1e-12)


class LiftedOperator(LinearOperator):
    """K on (batch, 1 + L n, height, width): the image, then ``scale`` times fewer features than there are: z = scale
    times what the operator gets.

    Parameters
    ----------
    filters: W, (L, n, k, k). mixing: U >= 0, (L - 1, n, n, m, m), m odd.
    image_shape: (1, height, width). scale: > 0.
    """

    def __init__(self, filters: Tensor, mixing: Tensor, image_shape: tuple[int, int, int], scale: float = 1.0) -> None:
        count, sides = filters.shape[0] * filters.shape[1], image_shape[1:]
        super().__init__((1 + count, *sides), (count, *sides))
        self.bank = FilterBank(filters.flatten(0, 1), image_shape, "zero", zero_mean=True)
        self.mixing, self.scale, self._image_shape = mixing, float(scale), image_shape

    def forward(self, x: Tensor) -> Tensor:
        responses: Tensor = self.bank(x[:, :1])
        return responses + self.scale * couple(x[:, 1:], self.mixing.to(x.dtype))

    def adjoint(self, y: Tensor) -> Tensor:
        features = self.scale * couple_adjoint(y, self.mixing.to(y.dtype))
        return torch.cat([self.bank.adjoint(y), features], 1)

    def _find_norm(self) -> NormBound:
        """sqrt(‖W‖² + ‖scale B‖²), at most sqrt(2) times the larger of the two."""
        filters, coupling = self._part_norms()
        return NormBound(math.hypot(filters, self.scale * coupling))

    def _part_norms(self) -> tuple[float, float]:
        """Bounds of ‖W‖ and ‖B‖."""
        ones = torch.ones(self.bank.filters.shape[0])
        features = self.range_shape[0] // (len(self.mixing) + 1)
        return weighted_norm_bound(self.bank, ones, tight=False), coupling_norm(self.mixing, features)

    def balance(self) -> float:
        """The scale at which both parts have the same norm, about."""
        filters, coupling = self._part_norms()
        return filters / coupling if filters > 0 else 1.0

    def gram_diagonal(self, weights: Tensor) -> Tensor | None:
        squares = FilterBank(self.bank.filters.detach().square(), self._image_shape, "zero")
        features = squared_coupling(weights, self.mixing.detach().to(weights.dtype))
        return torch.cat([squares.adjoint(weights), self.scale**2 * features], 1)

    def row_norms(self, grouped: bool) -> Tensor | float:
        filters = self.bank.filters.detach().double().flatten(1).square().sum(1)
        n = self.range_shape[0] // (len(self.mixing) + 1)
        passed = self.mixing.detach().double().square().sum((2, 3, 4)).flatten()
        features = 1.0 + torch.cat([torch.zeros(n, dtype=torch.float64, device=passed.device), passed])
        result: Tensor = (filters + self.scale**2 * features).sqrt() * (1.0 + 1e-12)
        return self.norm_bound() if grouped else result[:, None, None]

    def parameter_lipschitz(self) -> float | None:
        """W and U: k ‖x‖ ‖p‖ and m scale ‖z‖ ‖p‖, whose squares add up to at most the larger one's."""
        bank = cast(float, self.bank.parameter_lipschitz())
        return max(bank, self.scale * self.mixing.shape[-1]) if len(self.mixing) else bank
