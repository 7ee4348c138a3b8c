"""Input-convex networks: their parameters, how raw parameters make them, and their convolutions between layers.

    u_1 = W_0 x + b_1,   z_l = s(u_l),   u_{l+1} = U_l z_l + W_l x + b_{l+1},   R(x) = sum over pixels of <c, z_L>

with U_l >= 0, c > 0 and s convex and non-decreasing, so that R is convex. All convolutions are correlations with zero
padding, from images to images of the same sides.

Source: Amos, Xu and Kolter, "Input convex neural networks", ICML 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from learnreg.convolutions.dct import LARGEST_SIDE, dct_filters
from learnreg.errors import ConfigError
from learnreg.linear.arguments import is_whole, shown

__all__ = ["Network", "initial_parameters", "mix", "mix_adjoint", "mixing_matrix", "network_of"]

_FAINT = 0.05
"""Initial weights between features that do not belong together, relative to their average."""


@dataclass(frozen=True)
class Network:
    """The numbers of a network with L layers of n features.

    filters: W_0 ... W_{L-1}, (L, n, *kernel), each with zero mean in each channel of the image, so that R ignores
    constants away from the boundary.
    mixing: U_1 ... U_{L-1}, (L - 1, n, n, m, m), from the second axis 2 to axis 1, all > 0, m odd.
    biases: b_1 ... b_L, (L, n). weights: c, (n,), all > 0.
    """

    filters: Tensor
    mixing: Tensor
    biases: Tensor
    weights: Tensor

    @property
    def layers(self) -> int:
        return int(self.filters.shape[0])

    @property
    def features(self) -> int:
        return int(self.filters.shape[1])


def network_of(parameters: Mapping[str, Tensor], dimensions: int = 2) -> Network:
    """The network of raw parameters named as by :func:`initial_parameters`, in float64; differentiable. W are the raw
    filters minus their means, over so many sides, U and c exponentials."""
    raw = {name: p.double() for name, p in parameters.items()}
    filters, biases = raw["filters"], raw["biases"] + 0.0  # a parameter in float64 would be returned itself
    layers, n = biases.shape
    none = filters.new_empty(0, n, n, 1, 1)
    mixing = raw["log_mixing"].exp() if layers > 1 else none
    return Network(
        filters - filters.mean(tuple(range(-dimensions, 0)), keepdim=True), mixing, biases, raw["log_weights"].exp()
    )


def initial_parameters(
    features: int,
    layers: int,
    size: int,
    mixing_size: int,
    weight: float,
    generator: torch.Generator | None = None,
    dimensions: int = 2,
    channels: int = 0,
) -> dict[str, Tensor]:
    """Raw parameters that start as a sensible regularizer, about weight/n times the sum of |w * x| over n L/2 filters.

    Filters of unit norm come in pairs ±w, first the DCT basis without the constant by increasing frequency, then random
    ones: s(t) + s(-t) is a smooth |t|. U passes each feature on to those of the same rank, and faintly to all.

    Returns
    -------
    filters (L, n, k, k); log_mixing (L - 1, n, n, m, m), not for L = 1; biases (L, n); log_weights (n,).

    Raises
    ------
    ConfigError: sizes that are no positive integers, ``size`` < 2, or an even ``mixing_size``.
    """
    sizes = (features, layers, size, mixing_size)
    if not all(is_whole(s, 1, LARGEST_SIDE) for s in sizes) or size < 2 or mixing_size % 2 == 0:
        raise ConfigError(
            f"InputConvexNetwork(features={shown(features)}, layers={shown(layers)}, size={shown(size)}, mixing_size="
            f"{shown(mixing_size)}): expected positive integers up to {LARGEST_SIDE:,}, size >= 2, mixing_size odd."
        )
    pairs = (features + 1) // 2
    halves = dct_filters(layers * pairs, size, generator, dimensions, channels)
    halves = halves.reshape(layers, pairs, *halves.shape[1:])
    filters = torch.stack([halves, -halves], 2).flatten(1, 2)[:, :features]
    dtype = torch.get_default_dtype()
    found = {"filters": filters.clone(), "biases": torch.zeros(layers, features, dtype=dtype)}
    found["log_weights"] = torch.full((features,), weight / features, dtype=dtype).log()
    if layers > 1:
        spread = torch.rand(
            layers - 1, features, features, mixing_size, mixing_size, generator=generator, dtype=torch.float64
        )
        rank = torch.arange(features) // 2
        strong = (rank[:, None] == rank[None, :]).double()[:, :, None, None]
        middle = torch.zeros(mixing_size, mixing_size, dtype=torch.float64)
        middle[mixing_size // 2, mixing_size // 2] = 1.0
        mixing = strong * middle + _FAINT / (features * mixing_size**2) * (0.5 + spread)
        found["log_mixing"] = mixing.log().to(dtype)
    return found


def mix(z: Tensor, U: Tensor) -> Tensor:
    """U z: (batch, n, h, w) by kernels (n, n, m, m) to the same shape. Differentiable."""
    if U.shape[-1] == 1:
        return (U[:, :, 0, 0] @ z.flatten(2)).view_as(z)
    return F.conv2d(z, U, padding=U.shape[-1] // 2)


def mix_adjoint(y: Tensor, U: Tensor) -> Tensor:
    """U^T y, the transpose of :func:`mix`. Differentiable."""
    if U.shape[-1] == 1:
        return (U[:, :, 0, 0].T @ y.flatten(2)).view_as(y)
    return F.conv2d(y, U.transpose(0, 1).flip(-2, -1), padding=U.shape[-1] // 2)


def mixing_matrix(U: Tensor) -> Tensor:
    """The sums of non-negative kernels over their taps, (n, n) for (n, n, m, m).

    Its 2-norm, largest row sum and largest column sum bound those norms of U on images of any size (the first, the
    ones from the maximum norm and from the 1-norm to themselves). *Rigorous:* a zero-padded correlation is a block of
    one on a torus, at each of whose frequencies the matrix of transforms is, entry by entry, at most this one in
    modulus, and the norm of a non-negative matrix does not fall when its entries grow.
    """
    return U.sum((-2, -1))
