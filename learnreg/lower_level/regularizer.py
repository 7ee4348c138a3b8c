"""The contract of a regularizer: its value, and how it enters the lower-level saddle point."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from learnreg.errors import ConfigError, ShapeError
from learnreg.linear.operator import LinearOperator
from learnreg.linear.parameter_groups import ParameterGroup
from learnreg.lower_level.latent import Latent, NoLatent
from learnreg.potentials.base import Potential

__all__ = ["ParameterRole", "Pictures", "Regularizer", "SaddleTerms"]

ParameterRole = str
"""The name of a group of parameters that the operator, the potential or the latent variables of the saddle terms know
(``parameter_groups``): "operator" (its entries, affinely), "log_weight", "log_factor", "log_smoothing" (logarithms; of
shapes as the potential's) and what a potential adds, such as "log_curvature" for the knots of a spline. A raw parameter
is one of these numbers, or determines them by a smooth map whose derivative ``parameter_jacobian_bounds`` bounds."""


@dataclass(frozen=True)
class SaddleTerms:
    """R(x) = f(W x): the analysis operator W on one image shape, and the potential f; or, with latent variables z, the
    minimum over them of f(W (x, z)) and what ``latent`` adds to it."""

    operator: LinearOperator
    potential: Potential
    latent: Latent = field(default_factory=NoLatent)

    def at(self, scale: float) -> SaddleTerms:
        """The same in (x, z / scale)."""
        latent = self.latent.at(scale)
        return SaddleTerms(latent.analysis(self.operator), self.potential, latent)

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """All that operator, potential and latent variables say, in this order."""
        return (*self.operator.parameter_groups(), *self.potential.parameter_groups(), *self.latent.parameter_groups())


@dataclass(frozen=True)
class Pictures:
    """What a report draws of a regularizer.

    filters: groups of them, (groups, members, k, k), with weights and smoothings, if any, (groups,). responses,
    slopes: the derivatives of potentials as curves (curves, points) over (points,), relative to their largest value;
    None where they all have the same shape.
    """

    filters: Tensor
    weights: Tensor
    smoothing: Tensor | None
    responses: Tensor | None = None
    slopes: Tensor | None = None


class Regularizer(nn.Module):
    """A function R(x) = f(W x) with learnable parameters, convex, or weakly so (``Potential.concavity``); any nn.Module
    with these methods is one.

    A subclass implements ``saddle_terms`` and, to be certified, ``parameter_roles``; to be stored in a model file, it
    implements ``config`` and is registered in ``learnreg.regularizers``; to be trained from the command line, it
    implements ``from_options``. ``summary``: R(x) in a few words, for tables.
    """

    summary: ClassVar[str] = ""

    @abstractmethod
    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        """W and f for images of this shape (without the batch axis), differentiable in the parameters."""

    def parameter_roles(self) -> dict[str, ParameterRole]:
        """The group of each parameter by name. A parameter that is not named here has no certified gradient."""
        return {}

    def parameter_jacobian_bounds(self) -> dict[ParameterRole, float]:
        """For groups whose numbers (the entries of the operator's own parameters, logarithms of weights ...) are a
        smooth function of the raw parameters: a bound of the norm of its Jacobian, at the present parameters, over all
        raw parameters of the group together. 1 for groups that are not named. *Rigorous bounds.*"""
        return {}

    def scale_parameters(self) -> list[nn.Parameter]:
        """Raw parameters that are logarithms of weights: a number added to all of them multiplies R by its exponential.
        Training starts at the best such factor. By default those of the group "log_weight"; none: R has no scale."""
        roles = self.parameter_roles()
        return [p for name, p in self.named_parameters() if roles.get(name) == "log_weight"]

    def config(self) -> dict[str, Any]:
        """What, besides the parameters, rebuilds this object: numbers, texts, lists of these, and regularizers."""
        raise ConfigError(f"{type(self).__name__} does not implement config(), so it cannot be stored in a model file.")

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The object that ``config`` describes, its parameters still to be loaded; by default the constructor takes
        them as keywords."""
        return cls(**config)

    @classmethod
    def from_options(cls, options: Any, generator: torch.Generator) -> Self:
        """The regularizer that training starts from, for options of the command line (``RegularizerOptions``).

        Raises
        ------
        ConfigError: the class has none, or the options do not fit together.
        """
        raise ConfigError(f"{cls.__name__} does not implement from_options(), so the command line cannot train it.")

    def pictures(self) -> Pictures | None:
        """What the report of a training run draws of it; None: nothing."""
        return None

    def value(self, x: Tensor) -> Tensor:
        """R(x), shape (batch,), for x of shape (batch, *image_shape)."""
        if x.dim() < 2:
            raise ShapeError(f"{type(self).__name__}: got shape {tuple(x.shape)}, expected (batch, *image_shape).")
        terms = self.saddle_terms(tuple(x.shape[1:]))
        return terms.potential.to(x.dtype).value(terms.operator(x))

    def forward(self, x: Tensor) -> Tensor:
        """The same as ``value``."""
        return self.value(x)

    def at(self, sigma: float | Tensor) -> Regularizer:
        """The regularizer for noise level sigma, or for batches whose sample i has the level sigma[i], of a tensor
        (batch,); itself, where it is not conditioned on the noise. It shares its parameters with this one.

        Raises
        ------
        ConfigError: sigma is not positive and finite, or outside of what the regularizer knows.
        """
        level = checked_level(sigma, f"{type(self).__name__}.at(sigma)")
        if not isinstance(level, Tensor):
            return self.conditioned(level)
        return self if self.conditioned(float(level[0])) is self else _NoiseLevels(self, level)

    def conditioned(self, sigma: float) -> Self:
        """What ``at`` returns for a number; a noise-conditioned regularizer overrides it."""
        return self

    def sample_groups(self) -> list[tuple[Tensor, Regularizer]]:
        """Which samples of a batch have a regularizer of their own, and which one; none: all have this one."""
        return []

    def project_(self) -> None:
        """Project the parameters onto their admissible set, after an accepted step; nothing to do by default."""


class _NoiseLevels(Regularizer):
    """A noise-conditioned regularizer for batches whose sample i has the noise level ``levels[i]``.

    Samples of one level are solved together, each group with norms and constants of its own. Parameters are those of
    the regularizer, by their names.
    """

    def __init__(self, regularizer: Regularizer, levels: Tensor) -> None:
        super().__init__()
        self.__dict__["base"] = regularizer  # no submodule: parameters keep their names
        for part in ("_parameters", "_modules", "_buffers"):
            self.__dict__[part] = dict(getattr(regularizer, part))
        self.levels: list[float] = levels.double().tolist()

    @property
    def _base(self) -> Regularizer:
        base: Regularizer = self.__dict__["base"]
        return base

    def sample_groups(self) -> list[tuple[Tensor, Regularizer]]:
        members: dict[float, list[int]] = {}
        for i, level in enumerate(self.levels):
            members.setdefault(level, []).append(i)
        return [(torch.tensor(index), self._base.at(level)) for level, index in members.items()]

    def value(self, x: Tensor) -> Tensor:
        check_levels(self.sample_groups(), len(x))
        groups = [(index.to(x.device), regularizer) for index, regularizer in self.sample_groups()]
        values = torch.cat([regularizer.value(x[index]) for index, regularizer in groups])
        return values[torch.cat([index for index, _ in groups]).argsort()]

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        raise ConfigError(
            "a regularizer with a noise level for each sample has no single operator and potential; take those of "
            "R.at(sigma) for one of the levels."
        )

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return self._base.parameter_roles()

    def project_(self) -> None:
        self._base.project_()


def check_levels(groups: list[tuple[Tensor, Regularizer]], batch: int) -> None:
    """ShapeError unless the groups are those of a batch of this size."""
    count = sum(len(index) for index, _ in groups)
    if groups and count != batch:
        raise ShapeError(f"noise levels of {count} samples were given, for a batch of {batch}.")


def checked_level(sigma: Any, name: str) -> float | Tensor:
    """A noise level as a number, or one for each sample as a tensor (batch,).

    Raises
    ------
    ConfigError: neither, or not positive and finite.
    """
    if isinstance(sigma, Tensor) and sigma.dim() == 1 and len(sigma):
        if not (bool(torch.isfinite(sigma).all()) and float(sigma.min()) > 0):
            raise ConfigError(f"{name}: expected positive finite noise levels, got {sigma.tolist()}.")
        return sigma.detach()
    single = isinstance(sigma, (int, float)) or (isinstance(sigma, Tensor) and sigma.dim() == 0)
    if not (single and not isinstance(sigma, bool) and float(sigma) > 0 and math.isfinite(sigma)):
        got = f"a tensor of shape {tuple(sigma.shape)}" if isinstance(sigma, Tensor) and sigma.dim() else repr(sigma)
        raise ConfigError(
            f"{name}: got {got}, expected a positive finite number, or a tensor (batch,) with one for each sample."
        )
    return float(sigma)


def positive_log(values: Tensor | float, name: str, count: int | None = None) -> nn.Parameter:
    """The logarithm of positive numbers as a parameter; ``count`` repeats a single one."""
    tensor = torch.as_tensor(values)
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype())
    if not bool(torch.isfinite(tensor).all()) or bool((tensor <= 0).any()):
        raise ConfigError(f"{name}: expected positive finite numbers, got a minimum of {float(tensor.min()):g}.")
    if count is not None:
        if tensor.numel() not in (1, count):
            raise ShapeError(f"{name}: got {tensor.numel()} numbers for {count} filters.")
        tensor = tensor.reshape(-1).expand(count)
    return nn.Parameter(tensor.log().clone())
