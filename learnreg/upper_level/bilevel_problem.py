"""Bilevel problems beyond images: any smooth, strongly convex lower level, by its value alone.

    min over theta of upper(x^(theta), theta, data),    x^(theta) = argmin over x of lower(x, theta, data)

The lower level becomes a :class:`LowerLevelProblem` of one sample whose regularizer is the function, beside a data term
of weight 0, so that every solver, method and certificate of the library applies. The hypergradient is

    ∂_theta upper(x^, theta) + <∂_theta ∇_x lower(x^, theta), X^>,    ∇²_x lower X^ = -∇_x upper,

of which methods compute the second term; the error of the first one is at most that of x times a Lipschitz constant.

Source: Dempe, Foundations of Bilevel Programming (2002), 6; Pedregosa, Hyperparameter optimization with approximate
gradient (2016).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from learnreg.errors import ConfigError, SolverError
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.compute import CertificateName, Start, hypergradient
from learnreg.linear.arguments import check_type
from learnreg.linear.identity import Unchanged
from learnreg.losses import UpperLoss
from learnreg.lower_level.constraints import Box
from learnreg.lower_level.data_terms import WeightedLeastSquares
from learnreg.lower_level.linear_constraints import Constraint, Polyhedron
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.result import Hypergradient, Solution, Status
from learnreg.solvers.base import Solver
from learnreg.solvers.choice import SolverName
from learnreg.solvers.solve import FailureOption, check_failure_option, check_tolerance, solve
from learnreg.upper_level.faces import Faces
from learnreg.upper_level.lower_function import Constant, Function, Functions, LowerFunction
from learnreg.upper_level.trees import Tree, Variables

__all__ = ["BilevelProblem", "PosedProblem"]

Variable = Tensor | Mapping[str, Tensor]

_ROUNDS, _AIM = 5, 0.4
_COLD = 1e-3
"""Error of the state, over that of the starting point, before the first gradient is asked for."""

_SLACK = 1e-6


class BilevelProblem:
    """A bilevel problem given by two functions of torch tensors.

    Parameters
    ----------
    lower: lower(x, theta, data), a scalar or (problems,): one number for each of independent problems, whose sum is
        minimised. Twice differentiable and strongly convex in x.
    upper: upper(x, theta, data), a scalar or (problems,), whose mean is the loss.
    strong_convexity: mu > 0 such that lower - mu/2 ‖x‖² is convex in x, for every data; a number, or a function
        (theta, data) -> number. Without it errors are estimates.
    gradient_lipschitz, hessian_lipschitz: Lipschitz constants of ∇_x lower and ∇²_x lower in x. cross_bound,
        cross_lipschitz: bound and Lipschitz constant in x of ∂_theta ∇_x lower, theta all parameters together.
        upper_gradient_lipschitz: Lipschitz constant in x of the gradient of (the components of) upper in x and theta
        together. 2-norms, numbers or functions like ``strong_convexity``.
    constraint: None, ``lr.Nonnegative()`` or ``lr.Box(lower, upper)`` for all entries of x,
        ``lr.LinearConstraints(C, d, kind)``, or a sequence of them. On linear constraints the solution is looked for in
        the tangent space of those that hold it; hypergradients are certified where multipliers and distances, with
        their error bounds, show which ones do, and estimates elsewhere.

    x and theta are tensors or dicts of tensors, data is anything: tensors in dicts, lists and tuples are found and come
    to both functions in the precision of the computation, which is float64 where errors are judged; a tensor that a
    function finds elsewhere is not. Hypergradients are certified with ``strong_convexity``, ``hessian_lipschitz``,
    ``cross_lipschitz`` and ``upper_gradient_lipschitz``, which are held against probes near each solution, where x or
    theta has at most 512 entries (the norms of second derivatives at a point are then computed), or else with
    ``gradient_lipschitz`` and ``cross_bound``, too. Methods that take gradient steps need ``gradient_lipschitz``.

    Raises
    ------
    ConfigError: no functions, or constants that are none.

    Examples
    --------
    >>> def lower(x, theta, data):
    ...     return 0.5 * (x - data).square().sum() + 0.5 * theta.exp() * x.square().sum()
    >>> def upper(x, theta, data):
    ...     return 0.5 * (x - 1.0).square().sum()
    >>> problem = lr.BilevelProblem(lower, upper, strong_convexity=1.0)
    >>> theta, x, data = (torch.full((), 0.5, dtype=torch.float64) for _ in range(3))
    >>> hg = problem.hypergradient(theta, x, data, tolerance=1e-3)
    >>> hg.certified, sorted(hg.gradient)
    (False, ['theta'])
    """

    def __init__(
        self,
        lower: Function,
        upper: Function,
        strong_convexity: Constant = None,
        *,
        gradient_lipschitz: Constant = None,
        hessian_lipschitz: Constant = None,
        cross_bound: Constant = None,
        cross_lipschitz: Constant = None,
        upper_gradient_lipschitz: Constant = None,
        constraint: Constraint | None = None,
    ) -> None:
        constants: dict[str, Constant] = {
            "strong_convexity": strong_convexity,
            "gradient_lipschitz": gradient_lipschitz,
            "hessian_lipschitz": hessian_lipschitz,
            "cross_bound": cross_bound,
            "cross_lipschitz": cross_lipschitz,
            "upper_gradient_lipschitz": upper_gradient_lipschitz,
        }
        self.functions, self.constraint = Functions(lower, upper, constants), constraint

    def __repr__(self) -> str:
        return f"BilevelProblem({self.functions!r})"

    def at(self, theta: Variable, x: Variable, data: Any = None) -> PosedProblem:
        """The problem at parameters and data, to start from x. Parameters of float32 or float64, like x; an
        nn.Parameter is that of the posed problem, too, and other tensors share their memory with its parameters.

        Raises
        ------
        ConfigError: theta or x is no tensor or dict of tensors. ShapeError: types or values that are none of numbers.
        """
        return PosedProblem(self, theta, x, data)

    def solve(
        self, theta: Variable, x: Variable, data: Any = None, tolerance: float = 1e-6, **options: Any
    ) -> Solution:
        """The lower-level solution from x, see :meth:`PosedProblem.solve`."""
        return self.at(theta, x, data).solve(tolerance, **options)

    def hypergradient(
        self,
        theta: Variable,
        x: Variable,
        data: Any = None,
        method: HypergradientMethod | None = None,
        tolerance: float = 1e-2,
        **options: Any,
    ) -> Hypergradient:
        """The gradient of the loss in theta from x, see :meth:`PosedProblem.hypergradient`."""
        return self.at(theta, x, data).hypergradient(method, tolerance, **options)


class PosedProblem:
    """A bilevel problem at parameters and data.

    problem, b, loss: what ``lr.solve``, ``lr.hypergradient``, ``lr.certify`` and ``lr.BatchObjective`` take; x is one
    sample there, a vector with all entries in order, and ``loss`` leaves out that upper depends on theta directly.
    start: the vector of the starting point, (1, n).
    """

    def __init__(self, bilevel: BilevelProblem, theta: Variable, x: Variable, data: Any = None) -> None:
        check_type(bilevel, BilevelProblem, "PosedProblem(bilevel)", "an lr.BilevelProblem")
        self.bilevel = bilevel
        self._theta, self._x = Variables(theta, "theta"), Variables(x, "x")
        self.start = self._x.flat()[None]
        self.function = LowerFunction(bilevel.functions, self._theta, self._x, Tree.of(data))
        domain = (self.start.shape[1],)
        given = bilevel.constraint
        box = given if given is None or isinstance(given, Box) else None
        self.faces = None if box is given else Faces(self.function, Polyhedron.of(given, domain[0]))
        self.problem = LowerLevelProblem(
            Unchanged(domain),
            self.function,
            data_term=WeightedLeastSquares(torch.zeros((), dtype=self._x.dtype)),
            constraint=box,
        )
        self.b = torch.zeros_like(self.start)
        self.loss = UpperLoss(self._upper, self.function.constant("upper_gradient_lipschitz"))

    def _upper(self, x: Tensor) -> Tensor:
        return self.function.upper(x, self.function.theta(x.dtype))

    def __repr__(self) -> str:
        return f"PosedProblem({self.bilevel!r}, {self.start.shape[1]} variables, {len(self._theta.shapes)} parameters)"

    # ---- solutions ---------------------------------------------------------------------------------------------------

    def solve(
        self,
        tolerance: float = 1e-6,
        *,
        max_steps: int | None = None,
        solver: SolverName | Solver[Any] = "auto",
        on_failure: FailureOption = "return",
    ) -> Solution:
        """As :func:`learnreg.solve`; ``x`` is in the form of the starting point, the error bound the root mean square
        over all its entries."""
        options = {"max_steps": max_steps, "solver": solver, "on_failure": on_failure}
        start = self.settled(self.start)
        found = solve(self.problem, self.b, tolerance, start=start, **options)  # type: ignore[arg-type]
        if self.faces is not None:
            found = self.faces.solved(found)
        return replace(found, x=self.shaped(found.x))

    def hypergradient(
        self,
        method: HypergradientMethod | None = None,
        tolerance: float = 1e-2,
        *,
        absolute_tolerance: float = 0.0,
        max_steps: int | None = None,
        certificate: CertificateName = "auto",
        start: Start | None = None,
        on_failure: FailureOption = "return",
    ) -> Hypergradient:
        """The gradient of the loss in all of theta, as :func:`learnreg.hypergradient`; ``gradient`` by the names of
        theta ("theta" for a single tensor), ``x`` and ``X`` in the form of the starting point. ``start``: of an earlier
        call of :meth:`flat_hypergradient`."""
        check_failure_option(on_failure)
        options = {"absolute_tolerance": absolute_tolerance, "max_steps": max_steps, "certificate": certificate}
        found = self.flat_hypergradient(method, tolerance, start=start, **options)  # type: ignore[arg-type]
        result = replace(
            found,
            gradient=self._named(found.gradient),
            corrected_gradient=self._named(found.corrected_gradient),
            x=self.shaped(found.x),
            X=self.shaped(found.X),
        )
        if on_failure == "raise" and not result.status.converged:
            raise SolverError(f"hypergradient(tolerance={tolerance:g}): {result.reason or result.status.value}", result)
        return result

    def flat_hypergradient(
        self,
        method: HypergradientMethod | None = None,
        tolerance: float = 1e-2,
        *,
        absolute_tolerance: float = 0.0,
        start: Start | None = None,
        **options: Any,
    ) -> Hypergradient:
        """The same with x and X as vectors (1, n) and the parameters as ``problem`` names them, for warm starts."""
        found = self._on_face(method, tolerance, absolute_tolerance, start, options)
        return found if self.faces is None else self.faces.judged(found)

    def _on_face(
        self,
        method: HypergradientMethod | None,
        tolerance: float,
        absolute_tolerance: float,
        start: Start | None,
        options: dict[str, Any],
    ) -> Hypergradient:
        """Of the problem on the face of its linear constraints that holds the solution, with the direct term."""
        relative = check_tolerance(tolerance)
        x = self.start if start is None else start.x
        if method is not None and not method.adaptive:  # from where it is asked to start, on the face
            self.settled(x)
            X = torch.zeros_like(x) if start is None else start.X
            start = Start(self.function.face.place(x), self.function.face.tangent(X))
        elif start is not None:
            start = replace(start, x=self.settled(x))
        start = start or self._warm(options.get("max_steps"))
        applications = steps = 0
        for _ in range(_ROUNDS):
            found = hypergradient(
                self.problem,
                self.b,
                self.loss,
                method,
                relative,
                absolute_tolerance=absolute_tolerance,
                start=start,
                **options,
            )
            applications, steps = applications + found.operator_applications, steps + found.steps
            whole = self._with_direct(found)
            enough = max(tolerance * whole.norm, absolute_tolerance)
            adaptive = method is None or method.adaptive
            if not adaptive or not found.status.converged or whole.error_bound <= enough or found.bound_kind == "none":
                break
            share = _AIM * enough / whole.error_bound
            relative, absolute_tolerance = relative * share, absolute_tolerance * share
            start = Start.after(found)
        missed = found.status.converged and not whole.error_bound <= enough and found.bound_kind != "none"
        status = Status.STAGNATED if missed else found.status
        return replace(whole, status=status, steps=steps, operator_applications=applications)

    def settled(self, x: Tensor) -> Tensor:
        """A vector (1, n) to start from; with linear constraints on the face that holds the solution at the present
        parameters, which ``problem`` is about from now on."""
        return x if self.faces is None else self.faces.settled(x)

    def _warm(self, max_steps: int | None) -> Start:
        """The solution to a rough accuracy, in units of the error of the starting point."""
        x = self.settled(self.start)
        if self.faces is not None and not self.faces.polyhedron.bounded_by_equalities_alone:
            return Start(x, torch.zeros_like(x))  # the solution, by which its face was found
        frozen = self.problem.frozen()
        instance = frozen.at(self.b)
        slope, mu = float(instance.full_gradient(x).norm()), instance.strong_convexity
        rms = 1.0 / math.sqrt(x.shape[1])
        error = slope / mu if mu > 0 else max(float(x.norm()), 1.0)
        if slope > 0 and math.isfinite(error):
            x = solve(frozen, self.b, _COLD * error * rms, start=x, max_steps=max_steps).x
        return Start(x, torch.zeros_like(x))

    def shaped(self, x: Tensor) -> Any:
        """A vector (1, n) in the form of the starting point."""
        return self._x.shaped(x[0])

    def _named(self, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(self._theta.shapes, gradient.values(), strict=True))

    # ---- how the loss depends on theta itself ------------------------------------------------------------------------

    def direct(self, x: Tensor) -> dict[str, Tensor]:
        """∂_theta upper at a vector (1, n), as ``problem`` names the parameters."""
        return self.function.direct(x)[0]

    def with_direct(self, gradient: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """A gradient of ``problem`` formed at a vector (1, n), and the direct term there, by the names of theta."""
        direct = self.direct(x)
        return self._named({name: g + direct[name].to(g) for name, g in gradient.items()})

    def _with_direct(self, found: Hypergradient) -> Hypergradient:
        """The gradient in theta as a whole, with its bound."""
        x = found.x.double()
        direct, seen = self.function.direct(x)
        if not seen:
            return found
        error = float(found.state_error_bound.norm())
        rigorous = self.loss.gradient_lipschitz is not None and found.bound_kind == "rigorous"
        speed = self.function.fastest_direct(x)
        if self.loss.gradient_lipschitz is not None:
            share = self.loss.gradient_lipschitz
            if speed > share * (1.0 + _SLACK):
                raise ConfigError(
                    f"BilevelProblem(upper_gradient_lipschitz={share:g}): the gradient of upper in theta changes "
                    f"{speed:.6g} times as fast as x near the solution; pass a constant of at least that."
                )
            speed = share
        if not math.isfinite(error):
            error = self._estimated_error(found.x)
        added = speed * error if speed > 0 else 0.0

        def total(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: (g.double() + direct[name]).to(g) for name, g in gradient.items()}

        def bound(error_bound: float, gradient: dict[str, Tensor]) -> float:
            rounding = sum(torch.finfo(g.dtype).eps * float(g.norm()) for g in gradient.values())
            return error_bound + added + rounding

        gradient, corrected = total(found.gradient), total(found.corrected_gradient)
        return replace(
            found,
            gradient=gradient,
            corrected_gradient=corrected,
            error_bound=bound(found.error_bound, gradient),
            corrected_error_bound=bound(found.corrected_error_bound, corrected),
            certified=found.certified and rigorous,
        )

    def _estimated_error(self, x: Tensor) -> float:
        """Of x, in the 2-norm, where no modulus is known: that of a Newton step."""
        found = solve(self.problem, self.b, 1.0, start=x, max_steps=1)
        return float(found.error_bound.norm()) * math.sqrt(x.shape[1])
