"""Ridge regularizers: composed convolutions followed by learned spline potentials, convex or weakly convex."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learnreg.convolutions.composition import fine_grid, jacobian_bound, normalised, spectral_norm, zero_mean
from learnreg.convolutions.dct import LARGEST_SIDE, MOST_FILTERS
from learnreg.convolutions.padding import BOUNDARIES, Boundary
from learnreg.errors import ConfigError
from learnreg.linear.arguments import (
    check_flag,
    check_generator,
    check_one_of,
    is_whole,
    model_scale,
    real_number,
    shown,
)
from learnreg.lower_level.regularizer import Regularizer
from learnreg.lower_level.saddle_terms import ParameterRole, Pictures, SaddleTerms
from learnreg.potentials.modulus import of_modulus
from learnreg.potentials.spline import Spline, initial_coefficients
from learnreg.potentials.weakly_convex_spline import WeaklyConvexSpline
from learnreg.regularizers.image_kind import Coupling, ImageKind
from learnreg.regularizers.noise_conditioned import REFERENCE_NOISE, NoiseConditioned
from learnreg.regularizers.options import RegularizerOptions

__all__ = ["RidgeRegularizer"]

Convexity = Literal["convex", "convex-nonconvex"]

_WEIGHT_OF_EXPERTS = 0.5  # over the weight of a field of experts which smooths as much
_KNOTS_OF_EXPERTS = 2.0  # distance over the smoothing of such a field: with ten of them f'' reaches responses to noise
_SPREAD = 1.0  # twice the variance of the window of initial kernels, in pixels
_LARGEST_FILTER = 127  # pixels a side, composed: beyond, compositions take gigabytes
_REFLECTIONS = 3.0  # how often "reflect" repeats a place at most, along an axis


class RidgeRegularizer(NoiseConditioned, Regularizer):
    """R(x) = sum_c sum_i l_c v_c h_c((w_c * x)_i / v_c): filters w_c composed of small convolutions, h_c with learned
    second derivatives, convex or weakly convex.

    Parameters
    ----------
    channels: channels after each convolution; the last number is that of the filters. Filters have the side
        len(channels) · (size - 1) + 1, 13 by default, and the bank is scaled to a norm of 1 on large images (at
        most 1 across their channels).
    size: side of the small kernels.
    knots: of f'' on [-r, r], odd; f grows linearly beyond.
    convexity: "convex", or "convex-nonconvex": potentials with learned concave parts, so small that R(x) +
        nonconvexity/2 ‖x‖² is convex. The lower-level problem is strongly convex, with one minimiser, if data term and
        ridge have a larger modulus, 1 and more for denoising; else it is refused.
    nonconvexity: that number, for "convex-nonconvex". With "reflect" a ninth of it is used, lest small images break it.
    shared: one potential h for all channels instead of one for each; weights and smoothings are those of each channel.
    group_size: number s of filters in each group, a divisor of the last number of ``channels``. With s > 1 the filters
        form n = channels[-1]/s groups in their order, and h_c sees the length of the s responses of group c at each
        pixel: turning them among each other changes nothing.
    boundary: "zero" (any image), or "valid", "circular", "reflect" as in ``FilterBank``. "valid" leaves a border
        of half a filter alone and needs sides of at least that of the filters; "reflect" makes no edges at the border,
        but its norm takes seconds to bound between 1,024 and 4,096 pixels, and is probabilistic beyond.
    weight, smoothing: sum of the initial l_c ‖w_c‖, and initial v_c/‖w_c‖, the distance of the knots, in image units.
    depth: initial one of concave parts, as a share of the largest possible, above 0 and below 1.
    noise_conditioned: l_c and v_c are multiplied by (sigma/sigma_0)^a_c and (sigma/sigma_0)^b_c in ``at(sigma)``, with
        learned exponents that start at 1, where denoising does not depend on the units of images.
    noise_level: sigma_0, at which weights and smoothings are as stored.
    generator: for the random kernels; torch's default generator otherwise.
    image_channels, dimensions: of the images (channels, *sides).
    coupling: "separate", the same filters for every channel of the images; "joint", filters across them; "complex", the
        same filters for two channels, whose modulus the splines see.

    The raw parameters are, for n = channels[-1]/group_size, ``factors.0``, ``factors.1`` ... (channels, channels
    before, size, size), ``log_weights``, ``log_smoothing`` (n,), ``log_curvature`` (n or 1, (knots - 1)/2), the
    logarithms of f'' at the knots that are not the last, with "convex-nonconvex" ``logit_depth`` (n or 1,
    (knots - 3)/2), the depths of concave parts around the knots but 0 as shares of the largest possible, and with
    ``noise_conditioned`` ``weight_exponents`` and ``smoothing_exponents`` (n,). Depths are curvatures: they follow
    neither weights nor the noise level.

    Source: Goujon, Neumayer, Bohra, Ducotterd and Unser, IEEE Trans. Comput. Imaging 9 (2023), for ridge regularizers
    of composed convolutions with learned splines; Goujon, Neumayer and Unser, SIAM J. Imaging Sci. 17 (2024), for
    weakly convex ones; here f'' instead of f' is the linear spline. Groups: Ducotterd and Unser, Multivariate Fields
    of Experts (2025), whose potentials are others.

    Raises
    ------
    ConfigError: an argument that is out of its range, or of the wrong kind.

    Examples
    --------
    >>> R = lr.regularizers.RidgeRegularizer(channels=(2, 4), size=3, knots=5)
    >>> R.value(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2])
    """

    summary = "filters composed of small convolutions, learned splines"
    channels_option = "image_channels"
    grows_in = ("size", "convexity", "nonconvexity", "noise_conditioned")

    def __init__(
        self,
        channels: Sequence[int] = (4, 8, 32),
        size: int = 5,
        knots: int = 21,
        convexity: Convexity = "convex",
        *,
        nonconvexity: float = 0.9,
        shared: bool = False,
        group_size: int = 1,
        boundary: Boundary = "zero",
        weight: float = 0.15,
        smoothing: float = 1e-2,
        depth: float = 0.5,
        noise_conditioned: bool = False,
        noise_level: float = REFERENCE_NOISE,
        generator: torch.Generator | None = None,
        image_channels: int = 1,
        coupling: Coupling = "separate",
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        self.channels, self.group_size = _check_sizes(channels, size), _check_groups(channels, group_size)
        self.images = ImageKind.of("RidgeRegularizer", image_channels, coupling, dimensions)
        self.image_channels, self.image_dimensions = self.images.channels, self.images.dimensions
        check_one_of(convexity, ("convex", "convex-nonconvex"), "RidgeRegularizer(convexity)")
        check_one_of(boundary, BOUNDARIES, "boundary")
        positive = {"weight": weight, "smoothing": smoothing, "noise_level": noise_level, "nonconvexity": nonconvexity}
        for name, value in positive.items():
            model_scale(value, f"RidgeRegularizer({name})")
        if not real_number(depth, "RidgeRegularizer(depth)", above=0.0) < 1.0:
            raise ConfigError(f"RidgeRegularizer(depth={shown(depth)}): expected a share above 0 and below 1.")
        check_flag(shared, "RidgeRegularizer(shared)")
        check_generator(generator)
        self.size, self.knots, self.boundary, self.shared = size, knots, boundary, shared
        self.convexity, self.nonconvexity = convexity, float(nonconvexity)
        self.noise_level = self._sigma_0 = float(noise_level)
        dtype, n = torch.get_default_dtype(), self.channels[-1] // group_size
        self.factors = nn.ParameterList(_initial_factors(self.channels, size, generator, self.images))
        norms = self._exact_filters().detach().reshape(n, -1).norm(dim=1)
        self.log_weights = nn.Parameter((weight / n / norms).log().to(dtype))
        self.log_smoothing = nn.Parameter((smoothing * norms).log().to(dtype))
        coefficients = initial_coefficients(knots).expand(1 if shared else n, -1)
        self.log_curvature = nn.Parameter(coefficients.log().to(dtype))
        if convexity == "convex-nonconvex":
            shape = (coefficients.shape[0], coefficients.shape[1] - 1)
            self.logit_depth = nn.Parameter(torch.logit(torch.full(shape, depth, dtype=dtype)))
        self._condition_on_noise(noise_conditioned)

    @classmethod
    def from_options(cls, options: RegularizerOptions, generator: torch.Generator) -> Self:
        return cls(
            options.convolution_channels,
            options.filter_side,
            options.knots,
            cast(Convexity, options.convexity),
            nonconvexity=options.nonconvexity,
            weight=_WEIGHT_OF_EXPERTS * options.weight,
            smoothing=_KNOTS_OF_EXPERTS * options.smoothing,
            depth=options.depth,
            group_size=options.group_size or 1,
            noise_conditioned=options.noise_conditioned,
            generator=generator,
            image_channels=options.image_kind.get("channels", 1),
            coupling=options.image_kind.get("coupling", "separate"),
        )

    @property
    def effective_filters(self) -> Tensor:
        """w_c as applied to images, shape (n, k, k), or (n, channels, k, k) across channels, in the dtype of the
        parameters."""
        return self._exact_filters().to(self.log_weights.dtype)

    @property
    def weights(self) -> Tensor:
        """l_c, shape (n,), at the noise level in use."""
        return self._log_weights().exp()

    @property
    def smoothing(self) -> Tensor:
        """v_c, the distance of the knots, shape (n,), at the noise level in use."""
        return self._log_smoothing().exp()

    def potential(self) -> Spline:
        """The potentials in use, in float64."""
        weights, smoothing = (p.exp()[:, None, None] for p in (self._log_weights(), self._log_smoothing()))
        coefficients = self.log_curvature.double().exp()
        if self.convexity == "convex":
            return Spline(smoothing, weights, coefficients)
        depths = self._largest_depth * self.logit_depth.double().sigmoid()
        return WeaklyConvexSpline(smoothing, weights, coefficients, depths)

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        shape = self.images.check(image_shape, "RidgeRegularizer", "image_channels")
        filters, potential = self._exact_filters(), self.potential()
        if self.group_size == 1:
            bank = self.images.bank(filters, shape, self.boundary, zero_mean=True)
            return SaddleTerms(bank, self.images.seen_by(potential, "RidgeRegularizer"))
        members = self._in_groups(filters).transpose(0, 1)
        groups = self.images.grouped_bank(members, shape, self.boundary, zero_mean=True)
        return SaddleTerms(groups, of_modulus(potential, "RidgeRegularizer"))

    def parameter_roles(self) -> dict[str, ParameterRole]:
        roles: dict[str, ParameterRole] = {f"factors.{i}": "operator" for i in range(len(self.channels))}
        roles |= {"log_weights": "log_weight", "log_smoothing": "log_smoothing", "log_curvature": "log_curvature"}
        if self.convexity == "convex-nonconvex":
            roles["logit_depth"] = "log_depth"
        return roles | self._noise_roles()

    def parameter_jacobian_bounds(self) -> dict[ParameterRole, float]:
        """From the factors to the filters, from weights and exponents at a noise level to l_c and v_c, and from the
        logits, log d = log sigmoid, to the logarithms of depths."""
        bounds: dict[ParameterRole, float] = {"operator": jacobian_bound(list(self.factors), self._grid)}
        if self.convexity == "convex-nonconvex":
            bounds["log_depth"] = float(self.logit_depth.detach().double().neg().sigmoid().max()) * (1.0 + 1e-12)
        return bounds | self._noise_jacobian_bounds()

    def scale_parameters(self) -> list[nn.Parameter]:
        """The weights; depths of concave parts do not follow them."""
        return [self.log_weights]

    def adapted(self, name: str, value: Tensor) -> Tensor:
        """Kernels of a smaller side in the middle of those of this one's, which makes the same filters."""
        margin = self.size - value.shape[-1]
        if not name.startswith("factors.") or margin == 0:
            return value
        if margin < 0 or margin % 2:
            raise ConfigError(
                f"RidgeRegularizer(size={self.size}): kernels of side {value.shape[-1]} have no place in the middle of "
                "these; choose a size that is larger by an even number."
            )
        kernels = zero_mean(value) if name == "factors.0" else value
        return F.pad(kernels, [margin // 2] * (2 * self.image_dimensions))

    @property
    @torch.no_grad()
    def nonconvexity_used(self) -> float:
        """What of ``nonconvexity`` the learned potentials take: R(x) + that/2 ‖x‖² is convex on images of all sizes
        (*rigorous bound*); 0 of convex ones."""
        if self.convexity == "convex":
            return 0.0
        repeated = _REFLECTIONS**self.images.dimensions if self.boundary == "reflect" else 1.0
        grid, overshoot = fine_grid(self._filter_side, self.images.dimensions)
        concavity = torch.as_tensor(self.potential().concavity).flatten()
        if not bool(concavity.any()):
            return 0.0
        filters = self._exact_filters()
        filters = filters if self.images.across else filters[:, None]
        if len(concavity) > 1:
            concavity = concavity.repeat_interleave(self.group_size)
        scaled = filters * concavity.sqrt().reshape(-1, *(1,) * (filters.dim() - 1))
        return repeated * overshoot * float(spectral_norm(scaled, grid)) ** 2

    def config(self) -> dict[str, Any]:
        return {
            "channels": list(self.channels),
            "size": self.size,
            "knots": self.knots,
            "convexity": self.convexity,
            "nonconvexity": self.nonconvexity,
            "shared": self.shared,
            **({} if self.group_size == 1 else {"group_size": self.group_size}),
            "boundary": self.boundary,
            "noise_conditioned": self.noise_conditioned,
            "noise_level": self.noise_level,
            **({} if self.images.default else {"image_channels": self.images.channels}),
            **{name: value for name, value in self.images.config().items() if name != "channels"},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**{**config, "channels": tuple(config["channels"])}, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def pictures(self) -> Pictures:
        """Potentials as far as their knots."""
        filters, smoothing = self.effective_filters, self.smoothing
        members = self._in_groups(filters)
        norms = members.double().flatten(2).norm(dim=2)[:, 0]
        reach = float((smoothing / norms).median()) * (self.knots - 1) / 2
        return self.images.pictures(members, self.weights, smoothing, self.potential(), reach)

    def extra_repr(self) -> str:
        kind = "shared" if self.shared else "per channel"
        convexity = self.convexity if self.convexity == "convex" else f"nonconvexity={self.nonconvexity:g}"
        sizes = f"channels={self.channels}, size={self.size}, knots={self.knots} ({kind})"
        sizes += f", group_size={self.group_size}" if self.group_size > 1 else ""
        return f"{sizes}, {convexity}, boundary={self.boundary!r}{self.images.described()}"

    def _exact_filters(self) -> Tensor:
        """In float64, so that gradients of the factors are rounded once, at the end."""
        filters = normalised([factor.double() for factor in self.factors], self._grid)
        return filters if self.images.across else filters[:, 0]

    def _in_groups(self, filters: Tensor) -> Tensor:
        """(groups, members, *kernel)."""
        return filters.reshape(-1, self.group_size, *filters.shape[1:])

    @property
    def _filter_side(self) -> int:
        return len(self.channels) * (self.size - 1) + 1

    @property
    def _grid(self) -> int | None:
        """Frequencies on which the filters are normalised: many where a bound of their norm has to hold."""
        return None if self.convexity == "convex" else fine_grid(self._filter_side, self.images.dimensions)[0]

    @property
    def _largest_depth(self) -> float:
        """With depths below it, ‖√depth W‖² <= nonconvexity on images of all sizes: W is a block of a circulant whose
        spectrum on a fine grid of frequencies is at most 1."""
        dimensions = self.images.dimensions
        repeated = _REFLECTIONS**dimensions if self.boundary == "reflect" else 1.0
        return self.nonconvexity / (repeated * fine_grid(self._filter_side, dimensions)[1])

    def _log_weights(self) -> Tensor:
        return self._at_noise(self.log_weights.double(), "weight_exponents")

    def _log_smoothing(self) -> Tensor:
        assert self.log_smoothing is not None
        return self._at_noise(self.log_smoothing.double(), "smoothing_exponents")


def _check_sizes(channels: Sequence[int], size: int) -> tuple[int, ...]:
    whole = isinstance(channels, Sequence) and all(is_whole(c, 1, MOST_FILTERS) for c in channels)
    if not whole or not channels or not is_whole(size, 2, LARGEST_SIDE):
        raise ConfigError(
            f"RidgeRegularizer(channels={shown(channels)}, size={shown(size)}): expected integers, channels from 1 to "
            f"{MOST_FILTERS:,}, size from 2 to {LARGEST_SIDE:,}."
        )
    side = len(channels) * (size - 1) + 1
    if side > _LARGEST_FILTER:
        raise ConfigError(
            f"RidgeRegularizer(channels={shown(channels)}, size={shown(size)}): filters of {side} pixels a side, "
            f"expected {_LARGEST_FILTER} at most. Take a smaller size, or fewer convolutions."
        )
    return tuple(channels)


def _check_groups(channels: Sequence[int], group_size: int) -> int:
    if not is_whole(group_size, 1, MOST_FILTERS) or channels[-1] % group_size:
        raise ConfigError(
            f"RidgeRegularizer(group_size={shown(group_size)}, channels={shown(channels)}): expected an integer of at "
            f"least 1 that divides {channels[-1]}, the number of filters, into whole groups."
        )
    return group_size


def _initial_factors(
    channels: tuple[int, ...], size: int, generator: torch.Generator | None, images: ImageKind
) -> list[nn.Parameter]:
    """First differences of neighbours, in one channel after the other, then random kernels concentrated in the middle:
    compact filters that let noise through. Entries are of the size that steps of training have; the norm of the bank
    does not depend on it."""
    distance, dimensions = torch.arange(size, dtype=torch.float64) - (size - 1) / 2.0, images.dimensions
    square = sum(axis**2 for axis in torch.meshgrid(*[distance] * dimensions, indexing="ij"))
    window = torch.exp(-torch.as_tensor(square) / _SPREAD)
    found = []
    inputs = images.channels if images.across else 1
    for before, after in itertools.pairwise((inputs, *channels)):
        drawn = torch.randn(after, before, *(size,) * dimensions, dtype=torch.float64, generator=generator)
        found.append(0.5 * window * drawn)
    middle = (size - 1) // 2
    steps = _neighbours(dimensions)
    for c, (kernels, step) in enumerate(zip(found[0], [s for s in steps for _ in range(inputs)], strict=False)):
        kernels.zero_()
        first = (*[middle] * (dimensions - 1), max(middle, -step[-1]))
        kernel = kernels[c % inputs]
        kernel[first], kernel[tuple(a + d for a, d in zip(first, step, strict=True))] = -0.5, 0.5
    return [nn.Parameter(kernels.to(torch.get_default_dtype())) for kernels in found]


def _neighbours(dimensions: int) -> list[tuple[int, ...]]:
    """Steps to neighbours: along each axis, the last first, and the diagonals of images."""
    along = [tuple(int(a == axis) for a in range(dimensions)) for axis in reversed(range(dimensions))]
    return [*along, (1, 1), (1, -1)] if dimensions == 2 else along
