"""Ridge regularizers of others: convolutions that follow each other, and potentials with a linear spline as slope."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor

from learnreg.convolutions.chain import ConvolutionChain
from learnreg.convolutions.composition import compose
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.padding import BOUNDARIES, Boundary
from learnreg.errors import ConfigError, ShapeError
from learnreg.linear.arguments import real_number
from learnreg.linear.shapes import check_one_channel
from learnreg.lower_level.regularizer import Regularizer
from learnreg.lower_level.saddle_terms import Pictures, SaddleTerms
from learnreg.potentials.quadratic_spline import QuadraticSpline
from learnreg.regularizers.image_kind import ImageKind

__all__ = ["ImportedRidge"]

GREY_LEVELS = 255.0  # noise levels of published models count in them
_NOISE_OFFSET = 1e-5  # in grey levels


class ImportedRidge(Regularizer):
    """R(x) = l sum_c sum_i (d/s_c²) H_c(s_c (W x)_ci / d), of fixed filters W, H_c'' piecewise constant on integers.

    ``import_ridge`` makes one from a published checkpoint. Nothing in it is learned; ``Scaled(R)`` learns a factor.

    Parameters
    ----------
    kernels: (c_1, 1, k, k), (c_2, c_1, k, k) ..., correlations that follow each other.
    bends: H_c'' between the knots -m ... m, (1, 2m) for all channels or (n, 2m).
    distance: d, of the knots, where s_c = 1.
    factor: l > 0.
    log_scales: (n, q) or (1, q), the logarithm of s_c; a linear spline of the noise level in grey levels at q equal
        steps over ``noise_range``, less that of the noise level itself. One number, q = 1, without.
    noise_range: of noise levels in grey levels; None without.
    noise_level: where ``at`` has not been called, in units of images.
    boundary: "chain", zero beyond the image after each convolution, as published; otherwise the kernels are composed
        to one bank of filters, with that boundary: "zero" then differs near the border alone.

    Raises
    ------
    ConfigError: numbers out of their range.
    ShapeError: kernels that cannot be chained, or shapes that do not fit.

    Examples
    --------
    >>> difference = torch.tensor([[0.0, 0, 0], [0, -1, 1], [0, 0, 0]])[None, None]
    >>> R = lr.regularizers.ImportedRidge([difference], torch.tensor([[-0.2, 1.0, 1.0, -0.2]]), distance=0.1)
    >>> R.convex  # H'' is negative beyond responses of 0.1
    False
    """

    summary = "published ridges, convex or weakly convex; fixed"

    factor: Tensor
    bends: Tensor
    log_scales: Tensor

    def __init__(
        self,
        kernels: Sequence[Tensor],
        bends: Tensor,
        distance: float,
        *,
        factor: float = 1.0,
        log_scales: Tensor | None = None,
        noise_range: tuple[float, float] | None = None,
        noise_level: float | None = None,
        boundary: Boundary | Literal["chain"] = "chain",
    ) -> None:
        super().__init__()
        if boundary not in ("chain", *BOUNDARIES):
            raise ConfigError(f"boundary={boundary!r}: expected chain or one of {', '.join(BOUNDARIES)}.")
        for name, value in (("distance", distance), ("factor", factor)):
            real_number(value, f"ImportedRidge({name})", above=0.0)
        self.distance, self.boundary = float(distance), boundary
        self.noise_range = None if noise_range is None else (float(noise_range[0]), float(noise_range[1]))
        self._count = len(kernels)
        self._chains: dict[tuple[int, ...], tuple[list[Tensor], ConvolutionChain]] = {}
        for i, kernel in enumerate(kernels):
            self.register_buffer(f"kernel_{i}", kernel.detach().clone())
        self.register_buffer("bends", bends.detach().clone())
        self.register_buffer("factor", torch.tensor(float(factor), dtype=torch.float64))
        scales = torch.zeros(1, 1, dtype=torch.float64) if log_scales is None else log_scales.detach().clone()
        self.register_buffer("log_scales", scales)
        n = int(kernels[-1].shape[0])
        for name, table in (("bends", self.bends), ("log_scales", self.log_scales)):
            if table.dim() != 2 or table.shape[0] not in (1, n):
                raise ShapeError(
                    f"ImportedRidge({name}): got shape {tuple(table.shape)}, expected ({n} or 1, numbers)."
                )
        self.noise_level = None if self.noise_range is None else self._checked(noise_level)

    @property
    def kernels(self) -> list[Tensor]:
        return [self.get_buffer(f"kernel_{i}") for i in range(self._count)]

    @property
    def scales(self) -> Tensor:
        """s_c at the noise level in use, (n or 1,), in float64."""
        table = self.log_scales.double()
        if self.noise_level is None or self.noise_range is None:
            return table[:, 0].exp()
        level, (low, high) = GREY_LEVELS * self.noise_level, self.noise_range
        position = (level - low) / (high - low) * (table.shape[1] - 1)
        piece = min(int(position), table.shape[1] - 2)
        between = table[:, piece].lerp(table[:, piece + 1], position - piece)
        return between.exp() / (level + _NOISE_OFFSET)

    def potential(self) -> QuadraticSpline:
        """The potentials in use, in float64."""
        scales = self.scales[:, None, None]
        return QuadraticSpline(self.distance / scales, self.factor.double() / scales, self.bends.double())

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        check_one_channel(image_shape, "ImportedRidge")
        if self.boundary == "chain":
            return SaddleTerms(self._chain(image_shape), self.potential())
        filters = compose([kernel.double() for kernel in self.kernels])[:, 0]
        return SaddleTerms(FilterBank(filters, (1, image_shape[1], image_shape[2]), self.boundary), self.potential())

    def _chain(self, image_shape: tuple[int, ...]) -> ConvolutionChain:
        """The operator on images of this shape, kept with what is found about it: its norm takes a second."""
        kernels = self.kernels
        kept = self._chains.get(image_shape)
        if kept is None or any(a is not b for a, b in zip(kept[0], kernels, strict=True)):
            kept = self._chains[image_shape] = (kernels, ConvolutionChain(kernels, image_shape))
        return kept[1]

    def conditioned(self, sigma: float) -> Self:
        """The regularizer for noise of standard deviation sigma, in units of images, if it is conditioned on it."""
        if self.noise_range is None:
            return self
        result = copy.copy(self)
        result.noise_level = self._checked(sigma)
        return result

    @torch.no_grad()
    def pictures(self) -> Pictures:
        """Potentials as far as their knots."""
        filters = compose([kernel.double() for kernel in self.kernels])
        scales = self.scales.expand(len(filters))
        reach = float((self.distance / scales / filters.flatten(1).norm(dim=1)).median()) * self.bends.shape[1] / 2
        return ImageKind().pictures(
            filters, self.factor.double() / scales, self.distance / scales, self.potential(), reach
        )

    def config(self) -> dict[str, Any]:
        return {
            "kernels": [list(kernel.shape) for kernel in self.kernels],
            "bends": list(self.bends.shape),
            "log_scales": list(self.log_scales.shape),
            "distance": self.distance,
            "noise_range": None if self.noise_range is None else list(self.noise_range),
            "noise_level": self.noise_level,
            "boundary": self.boundary,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        limits = config["noise_range"]
        return cls(
            [torch.zeros(shape, dtype=torch.float64) for shape in config["kernels"]],
            torch.zeros(config["bends"], dtype=torch.float64),
            float(config["distance"]),
            log_scales=torch.zeros(config["log_scales"], dtype=torch.float64),
            noise_range=None if limits is None else (float(limits[0]), float(limits[1])),
            noise_level=config["noise_level"],
            boundary=config["boundary"],
        )

    def extra_repr(self) -> str:
        channels = tuple(int(kernel.shape[0]) for kernel in self.kernels)
        noise = "" if self.noise_level is None else f", noise_level={self.noise_level:.4g}"
        return f"channels={channels}, knots={self.bends.shape[1] + 1}{noise}, boundary={self.boundary!r}"

    def _checked(self, sigma: float | None) -> float:
        assert self.noise_range is not None
        low, high = (level / GREY_LEVELS for level in self.noise_range)
        level = 0.5 * (low + high) if sigma is None else float(sigma)
        if not (level > 0 and low <= level <= high * (1.0 + 1e-9)):
            raise ConfigError(
                f"noise level {level!r}: the model is learned for standard deviations above 0 and from {low:.4g} to "
                f"{high:.4g}, in units of images between 0 and 1."
            )
        return level
