"""Total generalised variation of second order (Bredies, Kunisch and Pock, SIAM J. Imaging Sci. 3, 2010) with a learned
discretisation (as in Bogensperger, Chambolle and Pock, "Convergence of a piggyback-style method for the differentiation
of solutions of standard saddle-point problems", SIAM J. Math. Data Sci. 4, 2022)."""

from __future__ import annotations

import math
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learnreg.convolutions.interpolation import (
    across,
    bilinear,
    check_interpolation,
    difference_norm,
    down,
    middle,
    placed,
    positions_in_pixel,
    sum_to_one,
)
from learnreg.convolutions.padding import Boundary
from learnreg.convolutions.second_order import SecondOrderOperator
from learnreg.linear.arguments import check_images, model_scale
from learnreg.linear.grad_mode import full_precision
from learnreg.linear.samples import sum_samples
from learnreg.linear.shapes import check_one_channel
from learnreg.lower_level.latent import Latent
from learnreg.lower_level.regularizer import Regularizer
from learnreg.lower_level.saddle_terms import ParameterRole, Pictures, SaddleTerms
from learnreg.potentials.base import Potential
from learnreg.potentials.isotropic import IsotropicPseudoHuber
from learnreg.regularizers.image_kind import ImageKind
from learnreg.regularizers.options import RegularizerOptions
from learnreg.regularizers.raw_parameters import positive_log
from learnreg.regularizers.reduction import best_latent, reduced_value

__all__ = ["LearnedTotalGeneralizedVariation"]

_ORIGINS = ((0.5, 0.0), (0.0, 0.5))
"""Where D_1 x and D_2 x, and so w_1 and w_2, live."""

_SECOND_ORIGINS = ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))
"""Where D_1 w_1, D_2 w_2 and the mixed differences live."""

_GUESS = 5
"""Side of the window over which differences are averaged, for a first guess of the field."""


class LearnedTotalGeneralizedVariation(Regularizer):
    """R(x) = min over w of  sum_k l_k sum_i phi(|(L_k * (D x - w))_i|) + sum_j m_j sum_i phi(|(M_j * E w)_i|)
                             + ½ delta ‖w‖²,   phi(r) = sqrt(r² + v²) - v:

    second-order total generalised variation, whose differences are interpolated, by learned kernels, to several
    positions in each pixel. Where the image is smooth the field w follows its differences, and only the symmetrised
    derivative E w is paid for: ramps do not turn into stairs.

    D are forward differences, E w = (D_1 w_1, D_2 w_2, (D_2 w_1 + D_1 w_2)/2) the same of the field, |E w| its
    Frobenius norm. The kernels, two in L_k and three in M_j, sum to one by parametrisation, so that quadratic images
    keep their second derivatives away from the border whatever is learned. The field consists of latent variables of
    the lower level (two more channels); delta makes them unique.

    Parameters
    ----------
    positions: number of positions for first and for second differences. One: R starts as forward differences. More: as
        interpolation to the edges of a pixel, its centre, its corner, then to random points of it.
    size: side of the kernels, odd, at least 3.
    weight: sum of the initial l_k. ratio: sum of the initial m_j over it, in pixels. Both are learnable through the
        raw parameter ``log_weights``, the l_k followed by the m_j.
    smoothing: v, fixed, in image units.
    delta: > 0, fixed; None: a tenth of ``weight``. With the image in [0, 1] differences are below one, and what delta
        adds is far below the rest.
    boundary: "replicate", or as in :class:`FieldsOfExperts`.
    generator: for the random positions; torch's default generator otherwise.

    The raw parameters ``kernels``, (2, m, k, k), and ``second_kernels``, (3, m, k, k), are those of L_1 and L_2, and of
    M_1, M_2 and M_3; those in use are the raw ones plus the constant that makes them sum to one.

    Raises
    ------
    ConfigError: an argument that is out of its range, or of the wrong kind.

    Examples
    --------
    >>> R = lr.regularizers.LearnedTotalGeneralizedVariation(positions=2, size=3)
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), R)
    >>> lr.solve(problem, torch.zeros(1, 1, 8, 8), tolerance=1e-2).certified
    True
    """

    summary = "second order: a field beside the image, learned interpolation of both kinds of differences"

    def __init__(
        self,
        positions: int = 4,
        size: int = 3,
        weight: float = 0.1,
        ratio: float = 2.0,
        smoothing: float = 1e-3,
        delta: float | None = None,
        boundary: Boundary = "replicate",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        name = "LearnedTotalGeneralizedVariation"
        check_interpolation(name, positions, size, boundary, weight=weight, ratio=ratio, smoothing=smoothing)
        delta = 0.1 * weight if delta is None else model_scale(delta, f"{name}(delta)")
        first, second = _initial_kernels(positions, size, generator)
        self.kernels, self.second_kernels = nn.Parameter(first), nn.Parameter(second)
        weights = torch.tensor([weight / positions, ratio * weight / positions], dtype=torch.get_default_dtype())
        self.log_weights: nn.Parameter = positive_log(weights.repeat_interleave(positions), f"{name} weight")
        self.smoothing, self.delta, self.boundary = float(smoothing), float(delta), boundary

    @classmethod
    def from_options(cls, options: RegularizerOptions, generator: torch.Generator) -> Self:
        return cls(
            options.positions,
            options.filter_side,
            weight=options.variation_weight,
            smoothing=options.smoothing,
            generator=generator,
        )

    @property
    def weights(self) -> Tensor:
        """The l_k, then the m_j, shape (2 m,), positive by parametrisation."""
        return self.log_weights.exp()

    @property
    def effective_kernels(self) -> tuple[Tensor, Tensor]:
        """The interpolation kernels in use, (2, m, k, k) and (3, m, k, k), in the dtype of the parameters."""
        return tuple(sum_to_one(k).to(k.dtype) for k in (self.kernels, self.second_kernels))  # type: ignore[return-value]

    @property
    def effective_filters(self) -> Tensor:
        """Interpolated first differences as filters applied to images, shape (m, 2, k + 1, k + 1), in the dtype of the
        parameters."""
        return _of_image(sum_to_one(self.kernels)).transpose(0, 1).to(self.kernels.dtype)

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        _check_shape(image_shape)
        parameters = self._parameters_in_use()
        operator, potential = _joint(self, image_shape, *parameters)

        def solve(x: Tensor) -> Tensor:
            return best_latent(_Reduction(self), x, _guess(x), *parameters)

        latent = Latent(
            image_channels=1,
            channels=2,
            cost=torch.zeros(1, 1, 1, dtype=torch.float64, device=self.kernels.device),
            modulus=self.delta,
            nonnegative=False,
            operator=operator.at,
            solve=solve,
            start=_guess,
            balance=operator.balance,
        )
        return SaddleTerms(operator, potential, latent)

    @full_precision
    def value(self, x: Tensor) -> Tensor:
        """R(x), shape (batch,), for x of shape (batch, 1, height, width); w is found to rounding."""
        check_images(x, type(self).__name__)
        self.check_usable()
        _check_shape(tuple(x.shape[1:]))
        return reduced_value(_Reduction(self), x, _guess(x.detach()), *self._parameters_in_use())

    def _parameters_in_use(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.kernels, self.second_kernels, self.log_weights

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {"kernels": "operator", "second_kernels": "operator", "log_weights": "log_weight"}

    def parameter_jacobian_bounds(self) -> dict[ParameterRole, float]:
        """From kernels to filters: a projection, then for L the kernel itself (on w) and its differences (on x), for
        M_1 and M_2 differences, for M_3 two of them over sqrt(2)."""
        return {"operator": math.hypot(1.0, difference_norm(self.kernels.shape[-1])) * (1.0 + 1e-12)}

    def config(self) -> dict[str, Any]:
        _, positions, size, _ = self.kernels.shape
        return {
            "positions": positions,
            "size": size,
            "smoothing": self.smoothing,
            "delta": self.delta,
            "boundary": self.boundary,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(
            int(config["positions"]),
            int(config["size"]),
            smoothing=float(config["smoothing"]),
            delta=float(config["delta"]),
            boundary=cast(Boundary, config["boundary"]),
            generator=torch.Generator().manual_seed(0),
        )

    @torch.no_grad()
    def pictures(self) -> Pictures:
        """Those of first differences."""
        filters = self.effective_filters
        weights = self.weights[: len(filters)]
        potential = IsotropicPseudoHuber(self.smoothing, weights.double()[:, None, None])
        return ImageKind().pictures(filters, weights, torch.full_like(weights, self.smoothing), potential)

    def extra_repr(self) -> str:
        _, positions, size, _ = self.kernels.shape
        return (
            f"positions={positions}, size={size}, smoothing={self.smoothing:g}, delta={self.delta:g}, "
            f"boundary={self.boundary!r}"
        )


class _Reduction:
    """F(x, w) of a regularizer for given parameters."""

    image_channels = 1

    def __init__(self, regularizer: LearnedTotalGeneralizedVariation) -> None:
        self.regularizer, self.modulus = regularizer, regularizer.delta

    def energy(self, x: Tensor, z: Tensor, *parameters: Tensor) -> Tensor:
        operator, potential = self.terms(tuple(x.shape[1:]), *parameters)
        field = 0.5 * self.modulus * sum_samples(z * z)
        return potential.to(x.dtype).value(operator(torch.cat([x, z], 1))) + field

    def terms(self, image_shape: tuple[int, ...], *parameters: Tensor) -> tuple[SecondOrderOperator, Potential]:
        return _joint(self.regularizer, image_shape, *parameters)


def _joint(
    regularizer: LearnedTotalGeneralizedVariation,
    image_shape: tuple[int, ...],
    first: Tensor,
    second: Tensor,
    log_weights: Tensor,
) -> tuple[SecondOrderOperator, IsotropicPseudoHuber]:
    """K and f for raw parameters."""
    L, (M_1, M_2, M_3) = sum_to_one(first), sum_to_one(second)
    shape = cast(tuple[int, int, int], image_shape)
    operator = SecondOrderOperator(
        _of_image(L),
        placed(L),
        torch.stack([down(M_1), across(M_2)]),
        torch.stack([across(M_3), down(M_3)]),
        shape,
        regularizer.boundary,
    )
    return operator, IsotropicPseudoHuber(regularizer.smoothing, log_weights.double().exp()[:, None, None])


def _of_image(kernels: Tensor) -> Tensor:
    """The filters (2, m, k + 1, k + 1) of forward differences of the image followed by the kernels."""
    return torch.stack([down(kernels[0]), across(kernels[1])])


def _check_shape(image_shape: tuple[int, ...]) -> None:
    check_one_channel(image_shape, "LearnedTotalGeneralizedVariation")


def _guess(x: Tensor) -> Tensor:
    """Differences of images, averaged over a neighbourhood: w for images that are smooth but for noise."""
    vertical = F.pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 0, 1))
    horizontal = F.pad(x[..., 1:] - x[..., :-1], (0, 1))
    differences = torch.cat([vertical, horizontal], 1)
    return F.avg_pool2d(differences, _GUESS, 1, _GUESS // 2, count_include_pad=False)


def _initial_kernels(positions: int, size: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Bilinear interpolation from where differences live."""
    default = torch.get_default_dtype()
    if positions == 1:
        return torch.stack([middle(1, size)] * 2).to(default), torch.stack([middle(1, size)] * 3).to(default)
    points = positions_in_pixel(positions, generator)
    first, second = (
        torch.stack([bilinear(points, origin, size) for origin in origins]) for origins in (_ORIGINS, _SECOND_ORIGINS)
    )
    return first.to(default), second.to(default)
