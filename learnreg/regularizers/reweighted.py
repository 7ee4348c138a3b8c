"""A regularizer whose terms are weighed by a solution, and solved for again: a chain of convex problems."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self, cast, get_args

import torch
from torch import Tensor, nn

from learnreg.errors import AssumptionError, ConfigError, ShapeError
from learnreg.linear.arguments import check_flag, check_images, check_one_of, is_whole, real_number, shown
from learnreg.linear.grad_mode import full_precision
from learnreg.lower_level.chain import Chain, SolutionWeights
from learnreg.lower_level.regularizer import Regularizer
from learnreg.lower_level.saddle_terms import Pictures, SaddleTerms
from learnreg.potentials.proximal import Grouped
from learnreg.potentials.weighted import reweightable
from learnreg.regularizers.fields_of_experts import FieldsOfExperts
from learnreg.regularizers.network_weights import FreeWeights, ResponseWeights
from learnreg.regularizers.noise_conditioned import REFERENCE_NOISE
from learnreg.regularizers.options import RegularizerOptions
from learnreg.regularizers.ridge import RidgeRegularizer
from learnreg.regularizers.solution_weights import MajorisingWeights

__all__ = ["Reweighted", "ReweightedRidge"]

WeightsName = Literal["majorising", "free", "responses"]

_SIDES, _FITTED = (16, 128), (32, 128, 16)  # of images that terms are looked at on, and that weights are fitted to
_WIDEST = 16
_MOST_STEPS = 1000


class Reweighted(Regularizer):
    """Weights of the terms of R(x) = sum_i f_i((K x)_i) that follow from a solution: ``lr.solve`` minimises with R,
    computes weights w in (0, 1] from the image, minimises with sum_i w_i f_i((K x)_i), and so on, ``steps`` times.

    Parameters
    ----------
    regularizer: R, a sum over responses or groups of them, such as FieldsOfExperts, TotalVariation, RidgeRegularizer;
        convex, or for weights that are not "majorising" as weakly convex as data term and ridge make up for: weights of
        at most 1 ask no more of them. It is a part, no copy, with its parameters under "base.…".
    weights: "majorising", w_i = h'(f_i((K x)_i)) with h(u) = s log(1 + u/s): every solve lowers the energy with
        sum_i h(f_i((K x)_i)), which ``value`` is. Without an energy, by small networks that end with a sigmoid: "free",
        two convolutions of x; "responses", one convolution of the sizes of K x, so that terms know from the start where
        they see edges.
    steps: solves after the first; None: until a fixed point, as far as the tolerance tells it.
    scale: of "majorising", s over the weight of f, in units of responses: where w is about a half. s of each channel is
        learned, as ``weights.log_scale``. Of "free", the height of edges that the initial network tells apart, in units
        of images; of "responses", twice the difference between neighbours (root mean square) of the image from whose
        responses the scales of sizes start.
    window: of "majorising", the side of windows, odd, that smooth the weights: w = B^T h'(B u), B with learned numbers
        >= 0 (``weights.logits``); 1 for none, and of the others.
    features: of "free", of the layer between two convolutions. size: of networks, the side of kernels, odd.
    generator: for the initial kernels of networks.
    carry_errors: whether solutions have error bounds, of the whole chain, by how far weights move with an image; solves
        get finer until they meet the tolerance, which may be out of reach of models of photographs. False: the error is
        estimated by a second, finer pass, and ``step_error_bound`` alone is rigorous: of the last problem, given its
        weights.

    Where R follows the noise level, so do the weights: scales by learned powers of sigma/(25/255), the raw parameter
    ``weights.scale_exponents``, and free ones see x over sigma/(25/255).

    Raises
    ------
    ConfigError: options that do not fit. AssumptionError: R couples all responses of an image, or is not convex with
    weights that are "majorising".

    Examples
    --------
    >>> import torch
    >>> import learnreg as lr
    >>> R = lr.regularizers.Reweighted(lr.regularizers.TotalVariation(0.1), steps=2)
    >>> found = lr.solve(lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), R), torch.rand(1, 1, 8, 8))
    >>> len(found.chain)
    3
    """

    summary = "another regularizer, its terms weighed by a solution and solved for again"
    grows_in = ("size", "steps", "carry_errors")

    def __init__(
        self,
        regularizer: Regularizer,
        weights: WeightsName = "majorising",
        steps: int | None = 2,
        *,
        scale: float = 0.1,
        window: int = 1,
        features: int = 8,
        size: int = 5,
        generator: torch.Generator | None = None,
        carry_errors: bool = True,
    ) -> None:
        super().__init__()
        check_flag(carry_errors, "Reweighted(carry_errors)")
        if not isinstance(regularizer, Regularizer):
            raise ConfigError(f"Reweighted(regularizer): got {type(regularizer).__name__}, expected a Regularizer.")
        check_one_of(weights, get_args(WeightsName), "Reweighted(weights)")
        if steps is not None and not is_whole(steps, 1, _MOST_STEPS):
            raise ConfigError(f"Reweighted(steps={shown(steps)}): expected 1 to {_MOST_STEPS}, or None.")
        for name, side in (("window", window), ("size", size)):
            if not is_whole(side, 1, _WIDEST) or not side % 2:
                raise ConfigError(f"Reweighted({name}={shown(side)}): expected an odd integer below {_WIDEST}.")
        if not is_whole(features, 1, 1024):
            raise ConfigError(f"Reweighted(features={shown(features)}): expected an integer from 1 to 1024.")
        if weights != "majorising" and window > 1:
            raise ConfigError(f"Reweighted(weights={weights!r}, window={window}): windows are for majorising weights.")
        real_number(scale, "Reweighted(scale)", above=0.0)
        self.base, self.steps, self.carry_errors = regularizer, steps, carry_errors
        self.image_channels, self.image_dimensions = regularizer.image_channels, regularizer.image_dimensions
        self._options = {"weights": weights, "steps": steps, "window": window, "features": features, "size": size}
        self._options["carry_errors"] = carry_errors
        channels, weight, axes, stacked = _places(regularizer, weights)
        plane = axes == 3 and regularizer.image_dimensions == 2
        if (weights != "majorising" or window > 1) and not plane:
            raise ConfigError(
                "Reweighted: windows and weights of networks are for images with two sides and responses of one axis "
                "of channels; signals, volumes and complex images take weights='majorising', window=1."
            )
        if weights != "majorising" and stacked:
            raise ConfigError(
                f"Reweighted(weights={weights!r}): {type(regularizer).__name__} has responses of all channels of an "
                "image below each other, where a network would see across their borders; take coupling='joint', or "
                "weights='majorising'."
            )
        self.weights: SolutionWeights
        adapts = regularizer.conditioned(REFERENCE_NOISE) is not regularizer
        if weights == "majorising":
            self.weights = MajorisingWeights(scale * weight.expand(channels).contiguous(), window, adapts)
        elif weights == "responses":
            self.weights = ResponseWeights(channels, size, 0.5 * scale, adapts, generator)
        else:
            self.weights = FreeWeights(self.image_channels, channels, features, size, generator, scale)
        self.weights.fit_(lambda: _terms(regularizer, _FITTED))

    # ---- the chain ---------------------------------------------------------------------------------------------------

    def chain(self) -> Chain[Regularizer]:
        return Chain(self.base, self.weights, self.steps, self.carry_errors)

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        raise ConfigError(
            "Reweighted stands for a chain of convex problems, which lr.solve, lr.hypergradient and lr.train run; "
            "nothing else takes it. The first of them is that of its part, Reweighted.base."
        )

    @full_precision
    def value(self, x: Tensor) -> Tensor:
        """The energy that the chain lowers, (batch,), not convex.

        Raises
        ------
        AssumptionError: weights that networks compute lower none.
        """
        check_images(x, type(self).__name__)
        self.check_usable()
        terms = self.base.saddle_terms(tuple(x.shape[1:]))
        terms = SaddleTerms(terms.operator, terms.potential.to(x.dtype))
        return self.weights.value(terms, terms.operator(x))

    def conditioned(self, sigma: float) -> Self:
        conditioned = self.base.conditioned(sigma)
        if conditioned is self.base:
            return self
        twin, weights = copy.copy(self), self.weights.at_noise(sigma / REFERENCE_NOISE)
        twin._modules = {**self._modules, "base": conditioned, "weights": weights}
        return twin

    def project_(self) -> None:
        self.base.project_()

    def scale_parameters(self) -> list[nn.Parameter]:
        """Those of R, and of weights that follow from the size of its terms the scales."""
        scales = self.base.scale_parameters()
        return [*scales, *self.weights.scale_parameters()] if scales else []

    def adapted(self, name: str, value: Tensor) -> Tensor:
        """Kernels of networks of a smaller side in the middle of those of this one's, which weigh the same."""
        if name.startswith("base."):
            return self.base.adapted(name.removeprefix("base."), value)
        margin = self.get_parameter(name).shape[-1] - value.shape[-1] if value.dim() == 4 else 0
        if margin < 0:
            raise ConfigError(
                f"Reweighted(size={self._options['size']}): kernels of side {value.shape[-1]} have no place in these; "
                "choose a size that is at least as large."
            )
        return torch.nn.functional.pad(value, [margin // 2] * 4) if margin else value

    @torch.no_grad()
    def fit_part_(self) -> None:
        """The terms of R get stronger by what weights take from them at first: at a weight of 1, which weights do not
        exceed, training would push all of them there, and the network's gradient would vanish. Weights that see its
        responses learn how large these are."""
        for p in self.base.scale_parameters():
            p.sub_(math.log(self.weights.usual()))
        self.weights.fit_(lambda: _terms(self.base, _FITTED))

    # ---- in model files and on the command line ----------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        return {"regularizer": self.base, **self._options}

    terms_from: ClassVar[type[Regularizer]] = FieldsOfExperts
    """What the command line reweighs."""

    @classmethod
    def from_options(cls, options: RegularizerOptions, generator: torch.Generator) -> Self:
        regularizer = cls.terms_from.from_options(options, generator)
        return cls(
            regularizer,
            cast(WeightsName, options.reweighting),
            options.solves,
            window=options.window,
            features=options.features,
            size=options.weights_side,
            generator=generator,
            carry_errors=options.carry_errors,
        )

    def pictures(self) -> Pictures | None:
        """Those of R, without weights."""
        return self.base.pictures()

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._options.items())


class ReweightedRidge(Reweighted):
    """``Reweighted`` for the command line, with a :class:`RidgeRegularizer`.

    Parameters, Raises: as there.

    Examples
    --------
    >>> R = lr.regularizers.ReweightedRidge(lr.regularizers.RidgeRegularizer((2, 4), 3, 5), steps=1)
    >>> len(lr.solve(lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), R), torch.rand(1, 1, 8, 8)).chain)
    2
    """

    summary = "a ridge regularizer, its terms weighed by a solution and solved for again"
    terms_from = RidgeRegularizer


def _terms(regularizer: Regularizer, sides: Sequence[int]) -> SaddleTerms:
    """On images of the first of these sides that its filters fit in."""
    try:
        return regularizer.saddle_terms((regularizer.image_channels, *(sides[0],) * regularizer.image_dimensions))
    except ShapeError:
        if len(sides) == 1:
            raise
        return _terms(regularizer, sides[1:])


@torch.no_grad()
def _places(regularizer: Regularizer, weights: WeightsName) -> tuple[int, Tensor, int, bool]:
    """The channels of what its weights belong to, the weights of its potential, () or (channels,), the number of axes
    of responses, and whether these have more places than images have pixels."""
    terms = _terms(regularizer, _SIDES)
    obstacle = "it has latent variables" if terms.latent.channels else reweightable(terms.potential)
    if not obstacle and weights == "majorising" and not terms.potential.convex:
        obstacle = "it is not convex, which weights='free' and 'responses' alone allow"
    if obstacle:
        raise AssumptionError(f"{type(regularizer).__name__} cannot be reweighted: {obstacle}.")
    channels = 1 if isinstance(terms.potential, Grouped) else int(terms.operator.range_shape[0])
    weight = torch.as_tensor(terms.potential.weight).detach()
    weight = weight.reshape(-1) if weight.numel() in (1, channels) else weight.max().reshape(1)
    shape, image = terms.operator.range_shape, terms.operator.domain_shape
    return channels, weight, len(shape), math.prod(shape[1:]) > math.prod(image[1:])
