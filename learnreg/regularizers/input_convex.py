"""Input-convex networks as regularizers (Amos, Xu and Kolter, 2017; Mukherjee et al., 2020), smooth and certified."""

from __future__ import annotations

import math
from typing import Any, Literal, Self, cast, get_args

import torch
from torch import Tensor, nn

from learnreg.convolutions.network_layers import Network, initial_parameters, network_of
from learnreg.errors import ConfigError
from learnreg.linear.arguments import check_images, check_one_of, model_scale, real_number, shown
from learnreg.linear.grad_mode import full_precision
from learnreg.lower_level.regularizer import Regularizer
from learnreg.lower_level.saddle_terms import ParameterRole, Pictures, SaddleTerms
from learnreg.potentials.network import NetworkPotential
from learnreg.regularizers.image_kind import WIDTH, WIDTHS, Coupling, ImageKind
from learnreg.regularizers.lifted_network import (
    LIFTED_ROLES,
    check_delta,
    lifted_jacobian_bounds,
    lifted_terms,
    lifted_value,
)
from learnreg.regularizers.options import RegularizerOptions

__all__ = ["InputConvexNetwork"]

Form = Literal["smooth", "lifted"]

_WEIGHT_OF_EXPERTS = 0.4  # over the weight of a field of experts which smooths as much


class InputConvexNetwork(Regularizer):
    """R(x) = sum over pixels of <c, z_L>, z_l = s(u_l), u_{l+1} = U_l z_l + W_l x + b_{l+1}, u_1 = W_0 x + b_1.

    U_l >= 0 and c > 0 by parametrisation, and s(t) = (t + sqrt(t² + v²) - v)/2 is convex and does not fall, so R is
    convex. s is a smooth max(t, 0); convolutions are padded with zeros and take any image.

    Parameters
    ----------
    channels, dimensions: of the images (channels, *sides).
    coupling: "separate", the same network for every channel; "joint", filters W_l across them. Complex images are
        refused: a network sees no modulus. The lifted form is for grey images.
    features: n, of each layer. Filters start in pairs ±w, n/2 of them for each layer.
    layers: L.
    size: side of the filters W_l, which have zero means: R does not see constants, but at the boundary.
    form: "smooth", or "lifted": the ReLU network as the value of a lower level of its own, smoothed by two quadratic
        terms (``lifted_network``), which primal-dual methods solve together with that of the image.
    mixing_size: side of the kernels U_l, odd; 1 unless the images are grey or joint colours, in two dimensions.
    weight: sum of the initial c.
    smoothing: initial v, in image units; learned, for each feature of each layer.
    delta: (delta_y, delta_z) of the lifted form, not learned. The kinks of the last layer have the width delta_y c in
        image units; slopes grow by delta_z per image unit of a feature. By default (2 smoothing / c, 0.03 c) with the
        initial c, the curvature of the smooth form at its kinks.
    minimum_smoothing: v stays above it, by parametrisation.
    generator: for the random part of the start; torch's default generator otherwise.

    The raw parameters are ``filters`` (L, n, k, k), or (L, n, channels, k, k) across channels, from which means are
    subtracted, ``log_mixing`` (L - 1, n, n, m, m; not for L = 1), ``biases`` (L, n), ``log_weights`` (n,), and, unless
    lifted, ``log_smoothing`` (L, n), the logarithm of v - minimum_smoothing.

    In operator applications, W, which stacks the convolutions of the image, and W^T count; those of the network behind
    it do not.

    Raises
    ------
    ConfigError: an argument that is out of its range, or of the wrong kind.

    Examples
    --------
    >>> R = lr.regularizers.InputConvexNetwork(features=4, layers=1, size=3)
    >>> R.value(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2])
    """

    summary = "a network that is convex in x"

    filters: nn.Parameter
    log_smoothing: nn.Parameter

    def __init__(
        self,
        channels: int = 1,
        features: int = 32,
        layers: int = 2,
        size: int = 5,
        form: Form = "smooth",
        *,
        mixing_size: int = 1,
        weight: float = 0.12,
        smoothing: float = 5e-3,
        minimum_smoothing: float = 0.0,
        delta: tuple[float, float] | None = None,
        generator: torch.Generator | None = None,
        coupling: Coupling = "separate",
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        self.images = ImageKind.of("InputConvexNetwork", channels, coupling, dimensions)
        self.image_channels, self.image_dimensions = channels, dimensions
        check_one_of(form, get_args(Form), "InputConvexNetwork(form)")
        if delta is not None and form != "lifted":
            raise ConfigError(f"InputConvexNetwork(delta={delta!r}): the {form} form has none; set smoothing.")
        weight = model_scale(weight, "InputConvexNetwork(weight)")
        smoothing = model_scale(smoothing, "InputConvexNetwork(smoothing)")
        minimum_smoothing = real_number(minimum_smoothing, "InputConvexNetwork(minimum_smoothing)", least=0.0)
        real_number(smoothing - minimum_smoothing, "InputConvexNetwork(smoothing - minimum_smoothing)", above=0.0)
        start = initial_parameters(
            features, layers, size, mixing_size, weight, generator, dimensions, channels if self.images.across else 0
        )
        _check_kind(self.images, form, mixing_size)
        for name, numbers in start.items():
            self.register_parameter(name, nn.Parameter(numbers))
        delta = delta or (2.0 * smoothing * features / weight, 0.03 * weight / features)
        self.delta = check_delta(delta) if form == "lifted" else delta
        if form == "smooth":
            offset = math.log(smoothing - minimum_smoothing)
            self.log_smoothing = nn.Parameter(torch.full((layers, features), offset, dtype=start["biases"].dtype))
        self.minimum_smoothing, self.form, self._names = float(minimum_smoothing), form, tuple(start)
        self.mixing_size = mixing_size

    @classmethod
    def from_options(cls, options: RegularizerOptions, generator: torch.Generator) -> Self:
        return cls(
            features=options.features,
            layers=options.layers,
            size=options.filter_side,
            form=cast(Form, options.form),
            weight=_WEIGHT_OF_EXPERTS * options.weight,
            smoothing=options.smoothing,
            minimum_smoothing=options.minimum_smoothing,
            generator=generator,
            **options.image_kind,
        )

    def network(self) -> Network:
        """The numbers of the network, in float64, so that gradients of raw parameters are rounded once, at the end."""
        return network_of({name: getattr(self, name) for name in self._names}, self.images.dimensions)

    @property
    def smoothing(self) -> Tensor:
        """v, (L, n), of the smooth form."""
        return self.minimum_smoothing + self.log_smoothing.exp()

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        shape = self.images.check(image_shape, "InputConvexNetwork")
        network = self.network()
        if self.form == "lifted":
            return lifted_terms(network, image_shape, self.delta)
        smoothing = self.minimum_smoothing + self.log_smoothing.double().exp()
        bank = self.images.bank(network.filters.flatten(0, 1), shape, "zero", zero_mean=True)
        columns = (smoothing.reshape(-1, 1, 1), network.weights[:, None, None])
        return SaddleTerms(bank, NetworkPotential(*columns, network.mixing, network.biases))

    @full_precision
    def value(self, x: Tensor) -> Tensor:
        check_images(x, type(self).__name__)
        self.check_usable()
        if self.form == "smooth" or x.dim() != 4 or x.shape[1] != 1:
            return super().value(x)
        return lifted_value(self.network(), x, self.delta)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        if self.form == "lifted":
            return {name: LIFTED_ROLES[name] for name in self._names}
        roles: dict[str, ParameterRole] = dict.fromkeys(self._names, "potential")
        return roles | {"filters": "operator", "log_smoothing": "potential"}

    def parameter_jacobian_bounds(self) -> dict[ParameterRole, float]:
        return lifted_jacobian_bounds(self.network()) if self.form == "lifted" else {}

    def scale_parameters(self) -> list[nn.Parameter]:
        """The weights of the last features; of the lifted form as its deltas vanish."""
        return [self.get_parameter("log_weights")]

    @torch.no_grad()
    def pictures(self) -> Pictures:
        """All filters of the image, weighted by what their features add to R at most, the product of the layers behind
        them; curves: what these add, as activations of the response, biases included. Of the lifted form those of the
        network that it tends to."""
        network, weights = self.network(), []
        behind = network.weights
        for l in reversed(range(network.layers)):
            weights.append(behind)
            behind = network.mixing[l - 1].flatten(2).sum(2).T @ behind if l else behind
        weight, filters = torch.cat(weights[::-1]).cpu(), network.filters.flatten(0, 1).cpu()
        norms, biases = filters.flatten(1).norm(dim=1), network.biases.flatten().cpu()
        smooth = self.smoothing.double().flatten().cpu() if self.form == "smooth" else None
        width = torch.full_like(norms, WIDTH) if smooth is None else smooth / norms.clamp_min(1e-30)
        reach = WIDTHS * float(width.median())
        t = torch.linspace(-reach, reach, 401, dtype=torch.float64)
        u = norms[:, None] * t + biases[:, None]
        slopes = (u > 0).double() if smooth is None else 0.5 * (1.0 + u / (u.square() + smooth[:, None] ** 2).sqrt())
        drawn = self.images.drawn(filters[:, None], weight, smooth)
        return drawn.with_slopes(t, (weight * norms)[:, None] * slopes)

    def config(self) -> dict[str, Any]:
        layers, features, *_, size = self.filters.shape
        return {
            "channels": 1,
            "features": features,
            "layers": layers,
            "size": size,
            "form": self.form,
            "mixing_size": self.mixing_size,
            "minimum_smoothing": self.minimum_smoothing,
            "delta": list(self.delta) if self.form == "lifted" else None,
        } | self.images.config()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        smoothing = float(config["minimum_smoothing"]) + 1.0  # until the parameters are loaded
        delta = config.get("delta")
        return cls(
            **{**config, "delta": None if delta is None else tuple(delta)},
            smoothing=smoothing,
            generator=torch.Generator().manual_seed(0),
        )

    def extra_repr(self) -> str:
        layers, features, *_, size = self.filters.shape
        sizes = f"features={features}, layers={layers}, size={size}, mixing_size={self.mixing_size}, form={self.form!r}"
        return sizes + self.images.described()


def _check_kind(images: ImageKind, form: str, mixing_size: int) -> None:
    """ConfigError for images that the network does not take."""
    if images.turns:
        raise ConfigError(
            "InputConvexNetwork(coupling='complex'): its activations see no modulus; take FieldsOfExperts, "
            "RidgeRegularizer or TotalVariation for complex images, or coupling='separate' or 'joint'."
        )
    if form == "lifted" and not images.default:
        raise ConfigError(
            f"InputConvexNetwork(form='lifted'{images.described()}): the lifted form is for grey images; take "
            "form='smooth'."
        )
    natural = images.dimensions == 2 and (images.channels == 1 or images.across)
    if mixing_size != 1 and not natural:
        raise ConfigError(
            f"InputConvexNetwork(mixing_size={shown(mixing_size)}{images.described()}): kernels between features are "
            "of images, one channel or joint ones; take mixing_size=1."
        )
