"""The lower-level problem at one theta: what depends on the learnable parameters is found here, once.

``problem.frozen()`` clones what is learned; nothing that happens to the problem afterwards changes it. At data b it is
an :class:`Instance`, which solvers and certificates see; the pairing differentiates its terms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from learnreg.errors import AssumptionError, ConfigError, DataError, OperatorError, ShapeError
from learnreg.linear.examination import examine, is_examined
from learnreg.linear.operator import LinearOperator
from learnreg.linear.reparametrized import reparametrized
from learnreg.lower_level.chain import Chain
from learnreg.lower_level.constraints import Box
from learnreg.lower_level.data_terms import DUALISED, DataTerm
from learnreg.lower_level.instance import Counter, Instance
from learnreg.lower_level.noise_levels import check_levels
from learnreg.lower_level.quadratic import quadratic_of
from learnreg.lower_level.regularizer import Regularizer
from learnreg.lower_level.saddle_terms import ParameterRole, SaddleTerms
from learnreg.potentials.base import Potential
from learnreg.potentials.claims import check_claims, foreign_potentials
from learnreg.result import Minimiser, brief

__all__ = ["FrozenProblem"]

_AMPLE = 0.1
"""Share of the modulus that weakly convex regularizers may leave before a ball around the solution promises more."""


class FrozenProblem:
    """A lower-level problem whose learnable parameters nobody changes.

    operator, regularizer (at the problem's noise level), data_term, ridge, constraint: those of the problem, with
    clones of what is learned, except in foreign modules. parameters: these clones, by the names of
    ``LowerLevelProblem.learnable``. originals: what they are clones of. minimiser: "global", or "local" where bounds
    may be about the minimiser in a ball.
    """

    def __init__(
        self,
        operator: LinearOperator,
        regularizer: Regularizer,
        data_term: DataTerm,
        ridge: float | nn.Parameter,
        constraint: Box,
        parameters: Mapping[str, nn.Parameter],
        originals: Mapping[str, nn.Parameter],
        minimiser: Minimiser = "global",
    ) -> None:
        self.minimiser: Minimiser = minimiser
        self.operator, self.regularizer, self.data_term = operator, regularizer, data_term
        self.ridge, self.constraint = ridge, constraint
        self.parameters, self.originals = dict(parameters), dict(originals)
        self._potentials: dict[torch.dtype, Potential] = {}
        self._screened = False

    def __repr__(self) -> str:
        parts = {name: type(getattr(self, name)).__name__ for name in ("operator", "regularizer", "data_term")}
        shapes = f"{self.operator.domain_shape} -> {self.operator.range_shape}"
        named = ", ".join(f"{name}={kind}" for name, kind in parts.items())
        return f"FrozenProblem({named}, {shapes}, ridge={self.ridge_value:g}, learned={brief(self.parameters)})"

    def frozen(self) -> FrozenProblem:
        """Itself."""
        return self

    def of_kind(self, domain_shape: tuple[int, ...], noise_level: float | None = None) -> FrozenProblem:
        """The same for images of this shape, and at a noise level of its own where one is given.

        Raises
        ------
        OperatorError: the operator is of another shape alone.
        """
        if noise_level is None and tuple(domain_shape) == tuple(self.operator.domain_shape):
            return self
        operator = self.operator.on(domain_shape)
        self.data_term.check_range(operator.range_shape)
        return self.with_parts(operator, self.regularizer if noise_level is None else self.regularizer.at(noise_level))

    def levels(self) -> list[FrozenProblem]:
        """The problem at each of its noise levels: itself, unless there is one for each sample."""
        groups = self.regularizer.sample_groups()
        return [self.with_parts(self.operator, regularizer) for _, regularizer in groups] or [self]

    def parts(self, b: Tensor) -> list[tuple[Tensor, FrozenProblem]]:
        """The samples of b at each noise level, by their indices, and their problem.

        Raises
        ------
        ShapeError: wrong shape, or noise levels of another number of samples.
        """
        self.operator.check_range(b, "b")
        groups = self.regularizer.sample_groups()
        check_levels([index for index, _ in groups], len(b))
        if not groups:
            return [(torch.arange(len(b), device=b.device), self)]
        return [
            (index.to(b.device), self.with_parts(self.operator, regularizer, self.data_term.part(index, b)))
            for index, regularizer in groups
        ]

    def with_parts(
        self, operator: LinearOperator, regularizer: Regularizer, data_term: DataTerm | None = None
    ) -> FrozenProblem:
        """The same but for these, with nothing found about it yet."""
        return FrozenProblem(
            operator=operator,
            regularizer=regularizer,
            data_term=self.data_term if data_term is None else data_term,
            ridge=self.ridge,
            constraint=self.constraint,
            parameters=self.parameters,
            originals=self.originals,
            minimiser=self.minimiser,
        )

    # ---- as a chain of problems --------------------------------------------------------------------------------------

    @cached_property
    def chain(self) -> Chain[Regularizer] | None:
        """What the regularizer says of it; None where the problem is one."""
        return self.regularizer.chain()

    @property
    def of_chains(self) -> bool:
        """Whether the problem, of several noise levels that of each, is a chain."""
        return any(level.chain is not None for level in self.levels())

    @cached_property
    def first_stage(self) -> FrozenProblem:
        """The first problem of a chain, without weights; itself, where it is none. The others: ``stages``.

        Raises
        ------
        ConfigError: a local minimiser is asked of a chain. AssumptionError: R is not convex, or no longer, and weights
        that lower an energy need it to be.
        """
        if self.chain is None:
            return self
        if self.minimiser == "local":
            raise ConfigError("a chain of convex problems has bounds of its own; use minimiser='global'.")
        first = self.with_parts(self.operator, self.chain.base)
        if self.chain.weights.majorising and not first.fixed.potential.convex:
            raise AssumptionError(
                f"{type(first.regularizer).__name__} is not convex at these parameters: weights='majorising' weigh "
                "convex regularizers alone; use weights='free' or 'responses'."
            )
        return first

    @property
    def differentiable(self) -> bool:
        """Whether the potential, of a chain that of all its problems, has a gradient everywhere."""
        return self.first_stage.fixed.potential.differentiable

    # ---- what depends on theta alone ---------------------------------------------------------------------------------

    @cached_property
    def terms(self) -> SaddleTerms:
        """The regularizer's operator and potential on the image shape, differentiable in ``parameters``."""
        with torch.inference_mode(False), torch.enable_grad():
            return self.regularizer.saddle_terms(self.operator.domain_shape)

    @cached_property
    def fixed(self) -> SaddleTerms:
        """The same for solvers, which do not differentiate; what is found about operators is kept with them."""
        with torch.inference_mode(False), torch.no_grad():
            terms = self._terms_on_images()
        return replace(terms, latent=terms.latent.cached())

    def _terms_on_images(self) -> SaddleTerms:
        shape = self.operator.domain_shape
        try:
            return self.regularizer.saddle_terms(shape)
        except ShapeError as error:
            if len(shape) != 2:
                raise
            kind = type(self.operator).__name__
            raise ShapeError(
                f"{error} Give the {kind} images with a channel axis, as Inpainting(mask[None])."
            ) from error

    def settle(self) -> None:
        """Find the terms now: regularizers of other classes have no twins, and may change until they are asked."""
        problem = self if self.chain is None else self.first_stage
        _ = problem.terms, problem.fixed

    def potential(self, dtype: torch.dtype) -> Potential:
        """The regularizer's potential without autograd, its parameters in that dtype."""
        if dtype not in self._potentials:
            with torch.inference_mode(False), torch.no_grad():
                self._potentials[dtype] = self.fixed.potential.to(dtype).detached()
        return self._potentials[dtype]

    @cached_property
    def concavity(self) -> float:
        """lambda with R + lambda/2 ‖x‖² convex, ‖√rho K‖² for f'' >= -rho, below 0 where R is known to be strongly
        convex; infinite where none is known for sure. *Rigorous bound*, where the potential ``has_modulus``."""
        if self.chain is not None:
            return self.first_stage.concavity
        f, K = self.potential(torch.float64), self.fixed.operator
        bound = f.softness(K)
        return math.inf if bound > 0 and K.norm_bound_kind == "probabilistic" else bound

    @cached_property
    def gram_lower_bound(self) -> float:
        """That of the forward operator."""
        return self.operator.gram_lower_bound()

    @cached_property
    def ridge_value(self) -> float:
        return float(self.ridge.detach()) if isinstance(self.ridge, Tensor) else float(self.ridge)

    @cached_property
    def jacobian_bounds(self) -> dict[ParameterRole, float]:
        """From raw parameters to what the bounds of a role are about; 1 where not named. *Rigorous bounds.*"""
        return self.regularizer.parameter_jacobian_bounds()

    @cached_property
    def reparametrized(self) -> list[str]:
        """Learned parameters that torch computes others from, see :func:`learnreg.linear.reparametrized`."""
        return sorted(set().union(*map(reparametrized, (self.operator, self.data_term, self.regularizer))))

    @cached_property
    def tied(self) -> list[str]:
        """Names under which learned parameters stand a second time."""
        modules = {"": self.regularizer, "operator.": self.operator, "data_term.": self.data_term}
        named = [
            (f"{prefix}{name}", p)
            for prefix, module in modules.items()
            for name, p in module.named_parameters(remove_duplicate=False)
        ]
        if isinstance(self.ridge, nn.Parameter):
            named.append(("ridge", self.ridge))
        known: dict[int, str] = {}
        return [name for name, p in named if p.requires_grad and known.setdefault(id(p), name) != name]

    @cached_property
    def learns_quadratic(self) -> bool:
        """Whether M has learned parameters besides the ridge: those of A and of a data term that is a square."""
        parameters = (p for m in (self.operator, self.data_term) for p in m.parameters())
        return not self.data_term.dualised and any(p.requires_grad for p in parameters)

    @cached_property
    def learned_groups(self) -> set[str]:
        """The names of the groups that learned parameters belong to, but for those of M."""
        own = self.parameter_roles()
        found = {own[name] for name in _learned(self.regularizer) if name in own}
        if self.data_term.dualised:
            names = _learned(self.data_term)
            if _learned(self.operator):
                names += [group.name for group in self.operator.parameter_groups()]
            found |= {f"{DUALISED}{name}" for name in names}
        return found

    def parameter_roles(self) -> dict[str, ParameterRole]:
        """Role of the regularizer's parameters by name."""
        return self.regularizer.parameter_roles()

    @cached_property
    def _unexamined(self) -> str:
        """The potentials of other classes than this package's that are not to be examined, by name."""
        foreign = foreign_potentials(self.fixed.potential)
        if all(part.examine for part in self.regularizer.modules() if isinstance(part, Regularizer)):
            return ""
        return ", ".join(dict.fromkeys(type(part).__name__ for part, _ in foreign))

    def screen(self) -> None:
        """Raise ConfigError or ShapeError where a regularizer that says its value alone, or a potential of another
        class than this package's, breaks its contract; once."""
        if not self._screened:
            with torch.inference_mode(False), torch.enable_grad():
                potential = self.terms.potential.to(torch.float64)
                shape, device = self.fixed.operator.range_shape, self.operator._device()
                potential.screen(shape, device)
            if not self._unexamined:
                check_claims(self.fixed.potential, shape, device)
            self._screened = True

    @cached_property
    def response_range(self) -> tuple[Tensor, Tensor] | None:
        """What the entries of A x are between on the constraint, (*range_shape) each, rounded outwards; None where
        they are not bounded, or A^T A has no lower bound that could make use of it, or A is learned."""
        lower, upper = (
            end.expand(self.operator.domain_shape)[None] for end in (self.constraint.lower, self.constraint.upper)
        )
        bounded = bool((torch.isfinite(lower) & torch.isfinite(upper)).all()) and self.gram_lower_bound > 0
        if not bounded or any(p.requires_grad for p in self.operator.parameters()):
            return None
        if not self.operator.is_nonnegative():
            return None
        with torch.no_grad():
            low, high = self.operator(torch.cat([lower, upper]).to(self.operator._device()))
        margin = 1e-9 * (low.abs() + high.abs())
        return low - margin, high + margin

    def modulus(self, data_term: DataTerm) -> float:
        """That of the data term, at some data, and the ridge. *Rigorous bound.*"""
        lowest = data_term.weight_range()[0]
        if not lowest >= 0:
            raise AssumptionError(
                f"{type(data_term).__name__} has a weight of {lowest:.3g}, but weights have to be >= 0: the energy may "
                "have no minimum. Call problem.project_() after each step of an optimizer."
            )
        return self.ridge_value + lowest * self.gram_lower_bound

    # ---- at data -----------------------------------------------------------------------------------------------------

    def at(self, b: Tensor, counter: Counter | None = None) -> Instance:
        """The problem at measurements b (batch, *range_shape); applications count on ``counter``.

        Raises
        ------
        ShapeError: wrong shape or dtype. DataError: NaN or infinite entries. OperatorError: A^T b has some.
        AssumptionError: a weakly convex regularizer that the data term and the ridge do not make up for; negative
        weights of the data term. OperatorError: an operator that is not this package's is not linear, or without its
        transpose.
        """
        self.operator.check_range(b, "b")
        if not len(b):
            raise DataError("b: an empty batch, nothing to solve.", hint="Leave it out, or use drop_last=True.")
        if b.device.type != "meta" and not _all_finite(b):
            bad = int((~torch.isfinite(b)).flatten(1).any(1).sum())
            raise DataError(f"b has NaN or infinite entries in {bad} of {b.shape[0]} samples.", hint="Clean the data.")
        with torch.no_grad():
            return self._at(b.detach(), counter or Counter())

    def _at(self, b: Tensor, counter: Counter) -> Instance:
        examine(self.operator, "forward")
        examine(self.fixed.operator, "analysis")
        self.screen()
        self.data_term.check_operator(self.operator)
        data_term = self.data_term.at(b, lambda: self.response_range)
        modulus = self.modulus(data_term)
        quadratic = quadratic_of(self.operator, data_term.weights_for(b).detach(), self.ridge_value, b)
        weighted = data_term.weigh(b)
        q = quadratic.pull(weighted)
        if q is not weighted and b.device.type != "meta" and not _all_finite(q):
            kind = type(self.operator).__name__
            raise OperatorError(f"{kind}.adjoint made NaN or infinite numbers of finite measurements b.", "finite")
        terms = data_term.joins(self.fixed.at(self.fixed.latent.scale_for(modulus)), self.operator)
        both = (self.operator, terms.operator)
        exact = all(operator.adjoint_mismatch() == 0.0 and is_examined(operator) for operator in both)
        exact = exact and self.fixed.potential.has_modulus
        exact = exact and not self._unexamined
        left = modulus - self.concavity
        local = self.minimiser == "local" and terms.potential.differentiable and not left > _AMPLE * modulus
        if not (local and not left > 0):
            self._check_convex(modulus)
        return Instance(
            quadratic=terms.latent.quadratic(quadratic, modulus),
            q=terms.latent.right_hand_side(q),
            analysis=terms.operator,
            potential=terms.potential.to(b.dtype).detached() if data_term.dualised else self.potential(b.dtype),
            box=terms.latent.box(self.constraint),
            strong_convexity=left if exact else 0.0,  # no bound where gradients are inexact
            counter=counter,
            latent=terms.latent,
            unexamined=self._unexamined,
            local=local,
            guess=data_term.start,
        )

    def _check_convex(self, modulus: float) -> None:
        if self.concavity > 0 and not modulus > self.concavity:
            raise AssumptionError(
                f"the regularizer is weakly convex, with a curvature of -{self.concavity:.3g} at worst, but data term "
                f"and ridge have a modulus of {modulus:.3g}, so that the energy may have several minima; use a ridge "
                f"above {self.ridge_value + self.concavity - modulus:.3g}, a regularizer with a smaller nonconvexity, "
                "or minimiser='local' for bounds about a local minimiser."
            )


def _learned(module: nn.Module) -> list[str]:
    """The names of the parameters that require a gradient."""
    return [name for name, p in module.named_parameters() if p.requires_grad]


def _all_finite(t: Tensor) -> bool:
    """Whether no entry is NaN or infinite; a sum that is finite tells in one pass without temporary memory."""
    return bool(torch.isfinite(t.sum())) or bool(torch.isfinite(t).all())
