"""On which face of its linear constraints a lower-level solution lies, and whether that is sure.

At the solution x^ of min f over {E x = e, C x <= d}, with multipliers, ∇f(x^) + E^T nu + C_A^T lambda = 0, lambda >= 0.
Where lambda > 0 for all rows of A, and C x^ < d for the others, A stays the same near theta: x^(theta) is the solution
on the face {E x = e, C_A x = d_A}, and its hypergradient the one there, from the tangent-space projection of the KKT
system. A point x of the face within e of the solution *on the face* proves both: a multiplier changes by at most the
norm of its row of the pseudo-inverse times L e, a slack by e.

Source: Nocedal and Wright, Numerical Optimization (2006), 16 and 18; Fiacco, Introduction to Sensitivity and Stability
Analysis (1983), 3.2; Giovannelli, Kent and Vicente, Inexact bilevel stochastic gradient methods for constrained and
unconstrained lower-level problems (2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from learnreg.errors import AssumptionError
from learnreg.lower_level.linear_constraints import Face, Polyhedron
from learnreg.result import Hypergradient, Solution, Status

__all__ = ["Faces", "Standing", "find_face", "stand"]

Energy = Callable[[Tensor], Tensor]
Array = np.ndarray

_ITERATIONS, _CLOSE, _ARMIJO, _SHORTEST = 60, 1e-10, 1e-4, 1e-10
_ROUNDING = 1e-11
"""Multipliers and violations below these shares of the gradient and of x are 0."""


def find_face(energy: Energy, polyhedron: Polyhedron, x: Tensor) -> tuple[Tensor, Face]:
    """A solution to rounding and the face that holds it, by Newton's method with a quadratic program at each step; f
    in float64, with n products of its Hessian at each step.

    Raises
    ------
    AssumptionError: nothing satisfies the constraints, or the energy is not convex there.
    """
    device = x.device
    point = polyhedron.project(x.double())
    held: tuple[int, ...] = ()
    for _ in range(_ITERATIONS):
        slope, hessian = _derivatives(energy, point)
        here, g, H = (t.cpu().numpy() for t in (point, slope, hessian))
        try:
            nearest = polyhedron.nearest(here, H, g)
        except np.linalg.LinAlgError as error:
            raise AssumptionError(
                "BilevelProblem(lower): it is not strongly convex on the constraints, so that its solution there may "
                "not be unique; add a multiple of the squared norm of x."
            ) from error
        step, held = torch.from_numpy(nearest.point).to(device) - point, nearest.held
        if float(step.norm()) <= _CLOSE * (1.0 + float(point.norm())):
            point = point + step
            break
        point = _searched(energy, point, step, float(slope @ step))
    return point, polyhedron.face(held)


def _searched(energy: Energy, x: Tensor, step: Tensor, slope: float) -> Tensor:
    """Along the step, halved until the energy falls."""
    size = 1.0
    with torch.no_grad():
        here = float(energy(x))
        while size > _SHORTEST:
            there = float(energy(x + size * step))
            if there <= here + _ARMIJO * size * slope + 1e-14 * abs(here):
                break
            size *= 0.5
    return x + size * step


@dataclass(frozen=True)
class Standing:
    """What a point of a face says of the whole problem. reason: why the solution is not known to lie within this face
    and to stay there near theta, "" where it is. residual: of the smallest element of ∇f + normal cone; over the
    modulus a *rigorous bound* of the point's distance to the solution, whatever holds that."""

    reason: str
    residual: float


def stand(energy: Energy, polyhedron: Polyhedron, face: Face, x: Tensor, error: float, lipschitz: float) -> Standing:
    """Of a point (n,) of the face and the polyhedron, within ``error`` of the solution on the face; ``lipschitz``: of
    ∇f near there."""
    point, g = x.double().cpu().numpy(), _gradient(energy, x.double()).cpu().numpy()
    equalities, length = len(polyhedron.E), 1.0 + float(np.linalg.norm(point))
    rows = np.concatenate([polyhedron.E, polyhedron.C[list(face.held)]])
    inverse = np.linalg.pinv(rows.T) if len(rows) else np.zeros((0, len(point)))
    every = -inverse @ g
    multipliers, speeds = every[equalities:], np.linalg.norm(inverse, axis=1)[equalities:] * lipschitz
    clamped = np.concatenate([every[:equalities], np.maximum(multipliers, 0.0)])
    residual = float(np.linalg.norm(g + rows.T @ clamped))
    others = np.setdiff1d(np.arange(len(polyhedron.C)), face.held)
    slack, implied = polyhedron.slack(point)[others], polyhedron.implied(face)[others]
    weak = multipliers - _ROUNDING * float(np.linalg.norm(g)) <= speeds * error
    near = ~implied & (slack - _ROUNDING * length <= error)
    held = np.array(face.held, dtype=int)[weak]
    undecided = [f"{k} may not hold it (multiplier {m:.3g})" for k, m in zip(held, multipliers[weak], strict=True)]
    undecided += [f"{k} may hold it, too (distance {s:.3g})" for k, s in zip(others[near], slack[near], strict=True)]
    if not undecided:
        return Standing("", residual)
    return Standing(f"which linear constraints hold the solution is not decided: inequality {undecided[0]}", residual)


def _gradient(energy: Energy, x: Tensor) -> Tensor:
    """∇f at a vector (n,)."""
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(energy(point), point, materialize_grads=True)
    return found


def _derivatives(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """∇f and ∇²f at a vector (n,)."""
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(energy(point), point, create_graph=True, materialize_grads=True)
        if not slope.requires_grad:
            return slope.detach(), torch.zeros(len(x), len(x)).to(x)
        units = torch.eye(len(x), dtype=x.dtype, device=x.device)  # entries of slope cost a pass through all of them
        columns = [torch.autograd.grad(slope, point, e, retain_graph=True, materialize_grads=True)[0] for e in units]
    return slope.detach(), torch.stack(columns)


def _curvature(energy: Energy, x: Tensor) -> float:
    """That of f at a vector (n,) in some direction, 1 where there is none: a scale."""
    v = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5)).to(x.device)
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(energy(point), point, create_graph=True, materialize_grads=True)
        if not slope.requires_grad:
            return 1.0
        (bent,) = torch.autograd.grad(slope, point, v, materialize_grads=True)
    found = float(v @ bent) / float(v @ v)
    return found if found > 0 and math.isfinite(found) else 1.0


class Restricted(Protocol):
    """A lower level that can be restricted to a face of its constraints."""

    normal_weight: float
    """Curvature across the face, where no modulus is declared."""

    @property
    def face(self) -> Face: ...

    def restrict(self, face: Face) -> None: ...

    def energy(self, x: Tensor) -> Tensor:
        """At a vector (n,), wherever it lies."""

    def constant(self, name: str) -> float | None: ...


class Faces:
    """The faces of a lower level under linear constraints."""

    def __init__(self, function: Restricted, polyhedron: Polyhedron) -> None:
        self.function, self.polyhedron = function, polyhedron
        self._latest: Tensor | None = None  # the solution by which the face was found
        function.restrict(polyhedron.base)

    def settled(self, x: Tensor) -> Tensor:
        """A vector (1, n) to start from, on the face that holds the solution at the present parameters, to which the
        lower level is restricted from now on."""
        if not self.polyhedron.bounded_by_equalities_alone:
            point, face = find_face(self.function.energy, self.polyhedron, x[0])
            self.function.restrict(face)
            self._latest = point
            x = point[None].to(x)
        x = self.function.face.place(x)
        if self.function.constant("strong_convexity") is None:
            self.function.normal_weight = _curvature(self.function.energy, x[0].double())
        return x

    def standing(self) -> Standing:
        """Of the face found last; *rigorous* like the modulus and the Lipschitz constants that are declared, an
        estimate where they are not."""
        if self._latest is None:
            return Standing("", 0.0)
        face, mu = self.function.face, self.function.constant("strong_convexity")
        point = face.place(self._latest)
        error = float(face.tangent(_gradient(self.function.energy, point)).norm()) / mu if mu else 0.0
        lipschitz = self._lipschitz(point, error)
        return stand(self.function.energy, self.polyhedron, face, point, error, lipschitz)

    def _lipschitz(self, x: Tensor, error: float) -> float:
        known, growth = self.function.constant("gradient_lipschitz"), self.function.constant("hessian_lipschitz")
        if known is not None:
            return known
        _, H = _derivatives(self.function.energy, x)
        return float(torch.linalg.matrix_norm(H, ord=2)) + (growth or 0.0) * error

    def solved(self, found: Solution) -> Solution:
        """The solution on a face, as a point of the polyhedron, to which projecting moves it nearer."""
        x = self.polyhedron.project(found.x[0])[None]
        standing, mu = self.standing(), self.function.constant("strong_convexity")
        rms = 1.0 / math.sqrt(x.shape[1])
        bound = found.error_bound + torch.finfo(x.dtype).eps * float(x.norm()) * rms
        if standing.reason and mu and self._latest is not None:
            apart = float((x[0].double() - self._latest).norm())
            bound = torch.full_like(bound, (apart + standing.residual / mu) * rms).maximum(bound)
        return replace(found, x=x, error_bound=bound)

    def judged(self, found: Hypergradient) -> Hypergradient:
        """The hypergradient on a face: an estimate of that of the problem unless the face is sure."""
        face, standing = self.function.face, self.standing()
        rounding = torch.finfo(found.x.dtype).eps * found.x.norm(dim=1)
        error = found.state_error_bound + rounding.to(found.state_error_bound)
        found = replace(found, x=face.place(found.x), X=face.tangent(found.X), state_error_bound=error)
        if not standing.reason:
            return found
        return replace(
            found,
            certified=False,
            bound_kind="estimate" if found.bound_kind == "rigorous" else found.bound_kind,
            status=Status.ESTIMATED if found.status is Status.CONVERGED else found.status,
            reason=standing.reason,
            loss_interval=(-math.inf, math.inf),
        )
