"""Weights of a regularizer's terms that a small network computes from a solution: of the image, or of the sizes of the
regularizer's own responses."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from learnreg.errors import AssumptionError, ConfigError
from learnreg.linear.norms import circulant_bound
from learnreg.linear.samples import expand
from learnreg.lower_level.chain import PullChange, SolutionWeights, WeightChange
from learnreg.lower_level.saddle_terms import SaddleTerms
from learnreg.potentials.base import weighted_square
from learnreg.regularizers.network_pull import FreePull, ResponsePull
from learnreg.regularizers.weight_pull import Moved

__all__ = ["FreeWeights", "ResponseWeights"]

_UP = 1.0 + 1e-9
_FLOOR = 1e-15
"""Of a change of weights, which are near 1 and rounded."""

_FIRST_LOGIT, _CALM = 2.0, 0.1
"""Of network weights at first: the logit where nothing is seen, and how much of it random kernels change."""


class _NetworkWeights(SolutionWeights):
    """w = sigmoid(l), of logits l = W_2 h + c_2 from features h of an image: ``second`` and ``second_bias``."""

    second: nn.Parameter
    second_bias: nn.Parameter

    def of(self, terms: SaddleTerms, x: Tensor, t: Tensor) -> Tensor:
        return self._second_layer(self._features(terms, x, t)).sigmoid()

    def usual(self) -> float:
        return float(self.second_bias.detach().mean().sigmoid())

    @abstractmethod
    def _features(self, terms: SaddleTerms, x: Tensor, t: Tensor) -> Tensor:
        """h, (batch, features, *sides)."""

    @abstractmethod
    def lipschitz(self, terms: SaddleTerms, sides: tuple[int, ...]) -> float:
        """Of the logits, of responses of these sides. *Rigorous bound.*"""

    def _second_layer(self, features: Tensor) -> Tensor:
        bias, padding = self.second_bias.to(features), self.second.shape[-1] // 2
        return torch.nn.functional.conv2d(features, self.second.to(features), bias, padding=padding)

    def _pulled(self, q: Tensor) -> Tensor:
        """W_2^T q."""
        return torch.nn.functional.conv_transpose2d(q, self.second.to(q), padding=self.second.shape[-1] // 2)

    def change(self, terms: SaddleTerms, x: Tensor, t: Tensor, e: Tensor) -> WeightChange:
        """Logits move by L e at most, all together; sigmoid' falls on each side of 0."""
        moved = expand(self.lipschitz(terms, tuple(t.shape[2:])) * e * _UP, x)
        logits = self._second_layer(self._features(terms, x, t))
        nearest = (logits.abs() - moved).clamp_min(0.0).sigmoid()
        slope = nearest * (1.0 - nearest) * _UP
        alone = (slope * moved) + _FLOOR

        def together(factors: Tensor) -> Tensor:
            entries = math.sqrt(factors[0].numel()) * _FLOOR * _largest(factors)
            return _largest(factors * slope) * moved.flatten() * _UP + entries

        return WeightChange(alone, together)

    def value(self, terms: SaddleTerms, t: Tensor) -> Tensor:
        raise AssumptionError(
            "weights that networks compute lower no energy, so that R(x) is not defined; the chain of problems is, see "
            "lr.solve, and so is an energy with Reweighted(weights='majorising')."
        )

    def extra_repr(self) -> str:
        return f"features={self.second.shape[1]}, size={self.second.shape[-1]}"


class FreeWeights(_NetworkWeights):
    """w = sigmoid(W_2 softplus(W_1 x + c_1) + c_2), convolutions with learned kernels, of the image alone; of x over
    the noise level, where that is told.

    Parameters
    ----------
    channels: of the images. places: channels of the weights. features: of the layer between. size: side of the kernels,
        odd. generator: for the initial kernels. scale: the height of edges that the first layer tells apart at first:
        its kernels, differences that come with either sign, have the norm 1/scale; weights are about .9.
    """

    _ratio = 1.0

    def __init__(
        self,
        channels: int,
        places: int,
        features: int,
        size: int,
        generator: torch.Generator | None = None,
        scale: float = 0.1,
    ) -> None:
        super().__init__()
        halves = torch.randn((features + 1) // 2, channels, size, size, generator=generator)
        halves = halves - halves.mean((2, 3), keepdim=True) if size > 1 else halves
        halves = halves / (scale * halves.flatten(1).norm(dim=1).clamp_min(1e-6)[:, None, None, None])
        self.first = nn.Parameter(torch.cat([halves, -halves])[:features].contiguous())
        self.second = nn.Parameter(_calm(places, features, size, generator))
        self.first_bias = nn.Parameter(torch.zeros(features))
        self.second_bias = nn.Parameter(torch.full((places,), _FIRST_LOGIT))

    def at_noise(self, ratio: float) -> Self:
        twin = copy.copy(self)
        twin._ratio = ratio
        return twin

    def of(self, terms: SaddleTerms, x: Tensor, t: Tensor) -> Tensor:
        if x.shape[2:] != t.shape[2:]:
            raise ConfigError(
                f"Reweighted(weights='free'): the regularizer has responses of sides {tuple(t.shape[2:])} for images "
                f"of sides {tuple(x.shape[2:])}; give it a boundary that keeps them, such as 'reflect', or take "
                "weights='responses'."
            )
        return super().of(terms, x, t)

    def _features(self, terms: SaddleTerms, x: Tensor, t: Tensor) -> Tensor:
        conv, padding = torch.nn.functional.conv2d, self.first.shape[-1] // 2
        seen = x / self._ratio
        return torch.nn.functional.softplus(conv(seen, self.first.to(x), self.first_bias.to(x), padding=padding))

    def norms(self, sides: tuple[int, ...]) -> tuple[float, float]:
        """Of both layers on images of these sides, which responses have, too. *Rigorous bounds.*"""
        around = tuple(side + self.first.shape[-1] - 1 for side in sides)
        first, second = (math.sqrt(circulant_bound(kernel, around)[0]) * _UP for kernel in (self.first, self.second))
        return first, second

    def lipschitz(self, terms: SaddleTerms, sides: tuple[int, ...]) -> float:
        return math.prod(self.norms(sides)) / self._ratio * _UP

    def pull_change(
        self, terms: SaddleTerms, x: Tensor, t: Tensor, e: Tensor, p: Tensor, moved: Moved
    ) -> PullChange | None:
        features, norms = self._features(terms, x, t), self.norms(tuple(x.shape[2:]))
        size, seen = self.first.shape[-1], x / self._ratio
        pull = FreePull(seen, self._second_layer(features), features, self._pulled, norms, size)
        found = pull.change(e / self._ratio * _UP, p, moved)
        return replace(found, pulled=found.pulled / self._ratio * _UP)


class ResponseWeights(_NetworkWeights):
    """w = sigmoid(W_2 h(u) + c_2), h(u) = sqrt(1 + u²) - 1, of the sizes u = |(K x)_i| / s of all responses around a
    place: W_2 a convolution with learned kernels, K the operator of the regularizer itself.

    At first each term looks at its own responses alone, and weighs w = sigmoid(2 - h) of their mean over the kernel.

    Parameters
    ----------
    places: channels of the weights. size: side of the kernels, odd. step: s starts as the root mean square of the
        responses to an image with the spectrum of photographs and random phases, whose neighbours differ by this, root
        mean square; the raw parameter is ``log_scale``. noise_conditioned: s is multiplied by a power of the noise
        level, with learned ``scale_exponents`` that start at 1. generator: for the initial kernels.
    """

    _log_noise = 0.0

    def __init__(
        self,
        places: int,
        size: int,
        step: float = 0.05,
        noise_conditioned: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.step, self.noise_conditioned = step, noise_conditioned
        second = _calm(places, places, size, generator)
        for i in range(places):
            second[i, i] -= 1.0 / size**2
        self.second = nn.Parameter(second)
        self.second_bias = nn.Parameter(torch.full((places,), _FIRST_LOGIT))
        self.log_scale = nn.Parameter(torch.zeros(places))
        if noise_conditioned:
            self.scale_exponents = nn.Parameter(torch.ones(places))

    @torch.no_grad()
    def fit_(self, terms_on_images: Callable[[], SaddleTerms]) -> None:
        terms = terms_on_images()
        image = _like_photographs(terms.operator.domain_shape, self.step).to(self.log_scale.device)
        size = terms.potential.gather(terms.operator(image[None]) ** 2)[0]
        found = size.mean(tuple(range(1, size.dim()))).sqrt()
        self.log_scale.copy_(found.clamp_min(1e-6 * float(found.max().clamp_min(1e-30))).log())

    def at_noise(self, ratio: float) -> Self:
        twin = copy.copy(self)
        twin._log_noise = math.log(ratio)
        return twin

    def _scales(self, t: Tensor) -> Tensor:
        logs = self.log_scale + self._log_noise * self.scale_exponents if self.noise_conditioned else self.log_scale
        return logs.to(t).exp().reshape(-1, *(1,) * (t.dim() - 2))

    def _squares(self, terms: SaddleTerms, t: Tensor) -> Tensor:
        """u²."""
        return terms.potential.gather(t * t) / self._scales(t) ** 2

    def _features(self, terms: SaddleTerms, x: Tensor, t: Tensor) -> Tensor:
        square = self._squares(terms, t)
        return square / ((1.0 + square).sqrt() + 1.0)

    def norms(self, terms: SaddleTerms, sides: tuple[int, ...]) -> tuple[float, float]:
        """Of K over s, and of W_2 on responses of these sides. *Rigorous bounds.*"""
        scales = self._scales(self.log_scale.detach().double()[None, :, None, None]).detach()
        first = math.sqrt(weighted_square(terms.operator, scales**-2)) * _UP
        around = tuple(side + self.second.shape[-1] - 1 for side in sides)
        return first, math.sqrt(circulant_bound(self.second, around)[0]) * _UP

    def lipschitz(self, terms: SaddleTerms, sides: tuple[int, ...]) -> float:
        """|dh/du| < 1."""
        return math.prod(self.norms(terms, sides)) * _UP

    def pull_change(
        self, terms: SaddleTerms, x: Tensor, t: Tensor, e: Tensor, p: Tensor, moved: Moved
    ) -> PullChange | None:
        features = self._features(terms, x, t)
        pull = ResponsePull(
            x=x,
            u=self._squares(terms, t).sqrt(),
            scales=self._scales(t),
            logits=self._second_layer(features),
            features=features,
            pulled=self._pulled,
            norms=self.norms(terms, tuple(t.shape[2:])),
            lipschitz=max((group.lipschitz for group in terms.operator.parameter_groups()), default=0.0),
            size=self.second.shape[-1],
            spread=math.hypot(1.0, self._log_noise) if self.noise_conditioned else 1.0,
        )
        return pull.change(e, p, moved)


def _calm(places: int, features: int, size: int, generator: torch.Generator | None) -> Tensor:
    """Random kernels that change little."""
    kernels = torch.randn(places, features, size, size, generator=generator)
    return _CALM * kernels / math.sqrt(math.prod(kernels.shape[1:]))


def _like_photographs(shape: tuple[int, ...], scale: float) -> Tensor:
    """An image (*shape,) whose power falls with the square of the frequency, and whose neighbours differ by ``scale``
    (root mean square)."""
    white = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    axes = tuple(range(1, len(shape)))
    grids = torch.meshgrid(*(torch.fft.fftfreq(n, dtype=torch.float64, device="cpu") for n in shape[1:]), indexing="ij")
    frequency = torch.stack([g**2 for g in grids]).sum(0).sqrt()
    falling = torch.where(frequency > 0, 1.0 / frequency.clamp_min(1e-9), 0.0)
    image: Tensor = torch.fft.ifftn(torch.fft.fftn(white, dim=axes) * falling, dim=axes).real
    steps = (image.roll(1, -1) - image).square().mean().sqrt()
    return (image * (scale / steps)).to(torch.get_default_dtype())


def _largest(t: Tensor) -> Tensor:
    """Of each sample, (batch,)."""
    return t.flatten(1).amax(1)
