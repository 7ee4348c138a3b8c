"""What a regularizer is to the lower-level saddle point, and to a report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.linear.operator import LinearOperator
from learnreg.linear.parameter_groups import ParameterGroup
from learnreg.lower_level.latent import Latent, NoLatent
from learnreg.potentials.base import Potential
from learnreg.potentials.proximal import Grouped
from learnreg.potentials.weighted import weighted

__all__ = ["ParameterRole", "Pictures", "SaddleTerms"]

_POINTS = 401  # odd: one of them is 0

ParameterRole = str
"""The name of a group of parameters that the operator, the potential or the latent variables of the saddle terms know
(``parameter_groups``): "operator" (its entries, affinely), "log_weight", "log_factor", "log_smoothing" (logarithms; of
shapes as the potential's) and what a potential adds, such as "log_curvature" for the knots of a spline. A raw parameter
is one of these numbers, or determines them by a smooth map whose derivative ``parameter_jacobian_bounds`` bounds."""


@dataclass(frozen=True)
class SaddleTerms:
    """R(x) = f(W x): the analysis operator W on one image shape, and the potential f; or, with latent variables z, the
    minimum over them of f(W (x, z)) and what ``latent`` adds to it.

    Parameters
    ----------
    operator, potential: W and f of R(x) = f(W x).

    Examples
    --------
    >>> terms = lr.regularizers.TotalVariation(0.1).saddle_terms((1, 8, 8))
    >>> terms.operator.domain_shape
    (1, 8, 8)
    """

    operator: LinearOperator
    potential: Potential
    latent: Latent = field(default_factory=NoLatent)

    def at(self, scale: float) -> SaddleTerms:
        """The same in (x, z / scale)."""
        latent = self.latent.at(scale)
        return SaddleTerms(latent.analysis(self.operator), self.potential, latent)

    def times(self, factor: float) -> SaddleTerms:
        """Those of factor · R."""
        if factor == 1.0:
            return self
        latent, potential = self.latent, self.potential.scaled(torch.tensor(factor, dtype=torch.float64))
        if latent.channels:
            latent = replace(latent, cost=factor * latent.cost, modulus=factor * latent.modulus)
        return SaddleTerms(self.operator, potential, latent)

    def select(self, index: Tensor | slice) -> SaddleTerms:
        """Those of some samples, where numbers of the potential differ from sample to sample."""
        potential = self.potential.select(index)
        return self if potential is self.potential else replace(self, potential=potential)

    def weighted(self, places: Tensor, spread: Tensor | float = 0.0) -> SaddleTerms:
        """Those of sum_i w_i f_i(W x), for weights of the places of each sample, (batch, *places), with bounds for all
        weights within ``spread``."""
        if self.latent.channels:
            raise ConfigError("a regularizer with latent variables has no weights of places; use another form of it.")
        return replace(self, potential=weighted(self.potential, places, spread))

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """All that operator, potential and latent variables say, in this order."""
        return (*self.operator.parameter_groups(), *self.potential.parameter_groups(), *self.latent.parameter_groups())


@dataclass(frozen=True)
class Pictures:
    """What can be drawn of a regularizer; each may be missing.

    filters: groups of them, (groups, members, k, k), with ``weights`` and ``smoothing``, (groups,). responses: of
    filters of unit norm, (points,), in units of images; values, slopes: the potentials there, weights included, and
    their derivatives, (curves, points). image_shape: the only one that the regularizer takes.
    """

    filters: Tensor | None = None
    weights: Tensor | None = None
    smoothing: Tensor | None = None
    responses: Tensor | None = None
    values: Tensor | None = None
    slopes: Tensor | None = None
    image_shape: tuple[int, ...] | None = None

    def along(self, potential: Potential, norms: Tensor, reach: float) -> Pictures:
        """With potentials of responses from -reach to reach to filters of these norms, (curves,): elementwise ones, or
        of groups along their first member."""
        f = potential.detached().to(torch.float64)
        t = torch.linspace(-reach, reach, _POINTS, dtype=torch.float64)
        responses = (norms[:, None] * t)[None, :, :, None]
        if isinstance(f, Grouped):
            responses = responses[:, None]
        return self.with_slopes(t, norms[:, None] * f.grad(responses.to(_device_of(f))).cpu().reshape(len(norms), -1))

    def with_slopes(self, responses: Tensor, slopes: Tensor) -> Pictures:
        """With potentials of these derivatives, 0 at the response in the middle."""
        values = torch.cumulative_trapezoid(slopes, responses, dim=1)
        values = torch.cat([torch.zeros_like(values[:, :1]), values], 1)
        return replace(self, responses=responses, values=values - values[:, len(responses) // 2, None], slopes=slopes)


def _device_of(potential: Potential) -> torch.device:
    numbers = (value for value in potential.numbers().values() if isinstance(value, Tensor))
    return next((value.device for value in numbers), torch.device("cpu"))
