"""The contract of a regularizer: its value, and how it enters the lower-level saddle point."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from learnreg.errors import ConfigError
from learnreg.linear.arguments import check_images, real_number, shown
from learnreg.linear.grad_mode import full_precision
from learnreg.linear.identity import Unchanged
from learnreg.linear.stack import Stack
from learnreg.lower_level.chain import Chain
from learnreg.lower_level.given_value import SnapshotFunction, of_any_dtype
from learnreg.lower_level.noise_levels import check_levels, checked_level
from learnreg.lower_level.saddle_terms import ParameterRole, Pictures, SaddleTerms
from learnreg.potentials.stacked import StackedPotential
from learnreg.potentials.value import ValuePotential
from learnreg.potentials.value_examination import Declared

__all__ = ["Combination", "Regularizer"]

_CONSTANTS = ("gradient_lipschitz", "hessian_lipschitz", "cross_bound", "cross_lipschitz")


def _says_its_value(cls: type[Regularizer]) -> bool:
    """Whether a class implements its value alone."""
    return cls.value is not Regularizer.value and cls.saddle_terms is Regularizer.saddle_terms


class Regularizer(nn.Module):
    """A function R(x) with learnable parameters, in one of two forms.

    R(x) = f(W x): a subclass implements ``saddle_terms`` and, to be certified, ``parameter_roles``. Convex, or weakly
    so (``Potential.concavity``).

    By its value alone: a subclass implements ``value``, twice differentiable, of any torch modules, and nothing else.
    Solvers and hypergradients differentiate it by autograd; errors are estimates, unless it declares what bounds need,
    as attributes or properties. All of it is of all images, and held against probes near each solution; a constant that
    is contradicted is refused.

    convex: R is convex; modulus: R(x) - modulus/2 ‖x‖² is, for a number that may be negative (convex = True is modulus
    = 0). With one of them errors of x are bounded.
    gradient_lipschitz, hessian_lipschitz: Lipschitz constants of ∇R and of ∇²R; cross_bound, cross_lipschitz: bound and
    Lipschitz constant of ∂_theta ∇R, theta all parameters together; in 2-norms. With all four hypergradients have
    bounds, too. Of at most 512 pixels the norms of ∇²R and ∂_theta ∇R at a point are computed, so that the two
    Lipschitz constants of second derivatives suffice; of at most 512 parameters that of ∂_theta ∇R.
    examine: False: it is neither screened nor probed, and nothing is certified.

    To be stored in a model file, it implements ``config`` and is registered in ``learnreg.regularizers``; to be trained
    from the command line, it implements ``from_options``. ``summary``: R(x) in a few words, for tables. Regularizers
    can be added and multiplied by positive numbers, see :class:`Combination`.

    Examples
    --------
    >>> R = lr.regularizers.TotalVariation(0.1) + 2.0 * lr.regularizers.FieldsOfExperts(2, 3)
    >>> isinstance(R, lr.Regularizer), R.value(torch.rand(5, 1, 8, 8)).shape
    (True, torch.Size([5]))
    """

    summary: ClassVar[str] = ""
    grows_in: ClassVar[tuple[str, ...]] = ()  # entries of config()

    convex: bool = False
    modulus: float | None = None
    gradient_lipschitz: float | None = None
    hessian_lipschitz: float | None = None
    cross_bound: float | None = None
    cross_lipschitz: float | None = None
    examine: bool = True

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if _says_its_value(cls) and not hasattr(cls.value, "_of_any_dtype"):
            cls.value = of_any_dtype(cls.value)  # type: ignore[method-assign, assignment]

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        """W and f for images of this shape (without the batch axis), differentiable in the parameters; by default the
        identity and the function that ``value`` is."""
        if not _says_its_value(type(self)):
            hint = "" if type(self).forward is Regularizer.forward else " Its forward is not asked: call it value."
            raise ConfigError(
                f"{type(self).__name__} implements neither value nor saddle_terms: define value(self, x), one number "
                f"for each image of a batch, from torch operations.{hint}"
            )
        return SaddleTerms(Unchanged(image_shape), ValuePotential(SnapshotFunction.of(self), self._declared()))

    def _declared(self) -> Declared:
        """What certificates may rest on."""
        name, modulus = type(self).__name__, self.modulus
        if self.convex and modulus is None:
            modulus = 0.0
        if self.convex and modulus is not None and modulus < 0:
            raise ConfigError(f"{name}: convex = True and modulus = {modulus:g} contradict each other; leave one out.")
        numbers = {n: getattr(self, n) for n in _CONSTANTS}
        for n, value in {"modulus": modulus, **numbers}.items():
            least = -math.inf if n == "modulus" else 0.0
            if value is not None:
                real_number(value, f"{name}.{n}", least=least)
        return Declared(name, modulus, **numbers, examined=self.examine)

    image_channels: int = 1
    """Channels of the images that it is for."""

    image_dimensions: int = 2
    """Their sides: 1 of signals, 2 of images, 3 of volumes."""

    channels_option: str = "channels"
    """The constructor's keyword for ``image_channels``."""

    def parameter_roles(self) -> dict[str, ParameterRole]:
        """The group of each parameter by name. A parameter that is not named here has no certified gradient. By default
        all of a regularizer that says its value alone form one group."""
        return dict.fromkeys((n for n, _ in self.named_parameters()), "value") if _says_its_value(type(self)) else {}

    def parameter_jacobian_bounds(self) -> dict[ParameterRole, float]:
        """For groups whose numbers (the entries of the operator's own parameters, logarithms of weights ...) are a
        smooth function of the raw parameters: a bound of the norm of its Jacobian, at the present parameters, over all
        raw parameters of the group together. 1 for groups that are not named. *Rigorous bounds.*"""
        return {}

    def fit_part_(self) -> None:
        """Make up for what this does to a part whose parameters were just taken from a model; nothing, for most."""

    def scale_parameters(self) -> list[nn.Parameter]:
        """Raw parameters that are logarithms of weights: a number added to all of them multiplies R by its exponential.
        Training starts at the best such factor. By default those of the group "log_weight"; none: R has no scale."""
        roles = self.parameter_roles()
        return [p for name, p in self.named_parameters() if roles.get(name) == "log_weight"]

    def config(self) -> dict[str, Any]:
        """What, besides the parameters, rebuilds this object: numbers, texts, lists of these, and regularizers."""
        raise ConfigError(f"{type(self).__name__} does not implement config(), so it cannot be stored in a model file.")

    def adapted(self, name: str, value: Tensor) -> Tensor:
        """The parameter of a model that this one starts from, which may differ from it in ``grows_in``."""
        return value

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The object that ``config`` describes, its parameters still to be loaded; by default, of these keywords."""
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

    @full_precision
    def value(self, x: Tensor) -> Tensor:
        """R(x), shape (batch,), for x of shape (batch, *image_shape)."""
        check_images(x, type(self).__name__)
        self.check_usable()
        terms = self.saddle_terms(tuple(x.shape[1:]))
        if terms.latent.channels:
            raise ConfigError(f"{type(self).__name__} has latent variables, so that it has to implement value, too.")
        return terms.potential.to(x.dtype).value(terms.operator(x))

    def check_usable(self) -> None:
        """Raise ConfigError where autograd is asked for and refuses the parameters."""
        if torch.is_grad_enabled() and any(p.is_inference() for p in self.parameters()):
            raise ConfigError(
                f"{type(self).__name__} was made in torch.inference_mode(), so that nothing can be differentiated; "
                "make it outside, or evaluate it under torch.no_grad()."
            )

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

    def stretched(self, scale: float) -> Regularizer:
        """A copy for images ``scale`` times as bright, scale² R(x / scale); itself, where the family knows none."""
        return self

    def chain(self) -> Chain[Regularizer] | None:
        """The chain of convex problems that it stands for, which ``learnreg.solve`` runs; None: it is one problem."""

    def sample_groups(self) -> list[tuple[Tensor, Regularizer]]:
        """Which samples of a batch have a regularizer of their own, and which one; none: all have this one."""
        return []

    def project_(self) -> None:
        """Project the parameters onto their admissible set, after an accepted step; nothing to do by default."""

    def __add__(self, other: object) -> Regularizer:
        if not isinstance(other, Regularizer):
            raise ConfigError(f"{type(self).__name__} + {type(other).__name__}: expected another Regularizer.")
        return Combination([self, other])

    def __radd__(self, other: object) -> Regularizer:
        return self if isinstance(other, int) and other == 0 else self + other  # as sum() begins

    def __mul__(self, factor: object) -> Regularizer:
        return Combination([self], [_factor(factor, f"a factor of {type(self).__name__}")])

    __rmul__ = __mul__

    def __sub__(self, other: object) -> Regularizer:
        raise ConfigError("regularizers can be added, but not subtracted: the difference of convex functions is none.")


class Combination(Regularizer):
    """factors[0] R_0(x) + factors[1] R_1(x) + ..., which ``R_0 + 2.0 * R_1`` makes.

    The parameters are those of the parts, under the names "0.…", "1.…": the parts themselves, no copies. Factors are
    fixed; ``Scaled`` learns one. Certified where the parts are, by the primal solvers: a sum has no proximal map.

    Parameters
    ----------
    parts: regularizers; of several, none may have latent variables. Those that are combinations count as their parts.
    factors: a positive number for each.

    Raises
    ------
    ConfigError: no parts, something else than a regularizer, or a factor that is not positive and finite.

    Examples
    --------
    >>> R = lr.regularizers.TotalVariation(0.1) + 2.0 * lr.regularizers.TotalVariation(0.2)
    >>> type(R).__name__
    'Combination'
    """

    summary = "a sum of other regularizers with positive factors"

    def __init__(self, parts: Sequence[Regularizer], factors: Sequence[float] | None = None) -> None:
        super().__init__()
        factors = [1.0] * len(parts) if factors is None else factors
        if not parts or len(factors) != len(parts):
            raise ConfigError(f"Combination: got {len(parts)} regularizers and {len(factors)} factors.")
        flat: list[tuple[Regularizer, float]] = []
        for part, factor in zip(parts, factors, strict=True):
            if not isinstance(part, Regularizer):
                raise ConfigError(f"Combination: got {type(part).__name__} among the parts, expected Regularizers.")
            number = _factor(factor, "a factor of Combination")
            flat += [(own, number * f) for own, f in zip(*_terms_of(part), strict=True)]
        for k, (part, _) in enumerate(flat):
            self.add_module(str(k), part)
        self.factors = tuple(f for _, f in flat)
        self.image_channels, self.image_dimensions = flat[0][0].image_channels, flat[0][0].image_dimensions

    @property
    def parts(self) -> list[Regularizer]:
        return [m for m in self._modules.values() if isinstance(m, Regularizer)]

    def value(self, x: Tensor) -> Tensor:
        return torch.stack([f * part.value(x) for part, f in zip(self.parts, self.factors, strict=True)]).sum(0)

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        terms = [part.saddle_terms(image_shape).times(f) for part, f in zip(self.parts, self.factors, strict=True)]
        for part, own in zip(self.parts, terms, strict=True):
            if own.latent.channels and len(terms) > 1:
                raise ConfigError(
                    f"{type(part).__name__} has latent variables, which a sum of regularizers does not carry; use it "
                    "alone, or in another form (InputConvexNetwork: form='smooth')."
                )
        if len(terms) == 1:
            return terms[0]
        operators, shapes = [own.operator for own in terms], [own.operator.range_shape for own in terms]
        return SaddleTerms(Stack(operators), StackedPotential([own.potential for own in terms], shapes))

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {
            f"{k}.{name}": self._role(k, role)
            for k, part in enumerate(self.parts)
            for name, role in part.parameter_roles().items()
        }

    def parameter_jacobian_bounds(self) -> dict[ParameterRole, float]:
        return {
            self._role(k, role): bound
            for k, part in enumerate(self.parts)
            for role, bound in part.parameter_jacobian_bounds().items()
        }

    def _role(self, k: int, role: ParameterRole) -> ParameterRole:
        """The role of a part as the stack of several calls it."""
        return f"{k}.{role}" if len(self.parts) > 1 else role

    def conditioned(self, sigma: float) -> Self:
        conditioned = [part.conditioned(sigma) for part in self.parts]
        if all(new is old for new, old in zip(conditioned, self.parts, strict=True)):
            return self
        twin = copy.copy(self)
        twin._modules = {str(k): part for k, part in enumerate(conditioned)}
        return twin

    def scale_parameters(self) -> list[nn.Parameter]:
        """Those of all parts, if each has some."""
        scales = [part.scale_parameters() for part in self.parts]
        return [p for own in scales for p in own] if all(scales) else []

    def project_(self) -> None:
        for part in self.parts:
            part.project_()

    def config(self) -> dict[str, Any]:
        return {"parts": self.parts, "factors": list(self.factors)}

    def pictures(self) -> Pictures | None:
        """Those of the first part that has any, without its factor."""
        return next((found for part in self.parts if (found := part.pictures()) is not None), None)

    def extra_repr(self) -> str:
        return f"factors={self.factors}"


def _terms_of(regularizer: Regularizer) -> tuple[list[Regularizer], list[float]]:
    """The parts of a combination and their factors; itself, once, of another one."""
    if type(regularizer) is Combination:
        return regularizer.parts, list(regularizer.factors)
    return [regularizer], [1.0]


def _factor(value: object, name: str) -> float:
    """A positive finite number, or ConfigError."""
    if isinstance(value, nn.Parameter):
        raise ConfigError(f"{name}: got a Parameter, but factors are fixed; Scaled(regularizer, factor) learns one.")
    single = isinstance(value, Tensor) and not value.is_nested and not value.is_meta and value.numel() == 1
    number = value.item() if single else value  # type: ignore[attr-defined]
    try:
        return real_number(math.nan if isinstance(number, bool) else number, name, above=0.0)
    except ConfigError as error:
        raise ConfigError(f"{name}: got {shown(value)}, expected a positive finite number.") from error


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
        check_levels([index for index, _ in self.sample_groups()], len(x))
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
