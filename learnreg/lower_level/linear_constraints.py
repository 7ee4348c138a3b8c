"""Linear constraints on all unknowns, the faces of the polyhedron they make, and nearest points in it.

A face is where some inequalities hold with equality: an affine subspace {x : Q^T x = c} with orthonormal columns Q. On
it x moves freely along the tangent space, onto which I - Q Q^T projects. Nearest points are found by the dual
active-set method, whose multipliers say which inequalities hold the point.

Source: Goldfarb and Idnani, A numerically stable dual method for solving strictly convex quadratic programs (1983);
Nocedal and Wright, Numerical Optimization (2006), 12 and 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from learnreg.errors import AssumptionError, ConfigError, ShapeError
from learnreg.linear.arguments import check_one_of, check_type, given_tensor
from learnreg.lower_level.constraints import Box

__all__ = ["Constraint", "Face", "LinearConstraints", "Nearest", "Polyhedron"]

Array = np.ndarray
_RANK, _CONSISTENT = 1e-11, 1e-9
"""Singular values, and residuals, below these shares of the largest count as 0."""

_FEASIBLE = 1e-12
"""Violation that is rounding, over the size of what cancels in it."""


class LinearConstraints:
    """C x = d, or C x <= d, for x with all its entries in order (those of a dict one tensor after the other).

    Parameters
    ----------
    C: (constraints, entries of x). d: (constraints,), or one number for all. Both are fixed: gradients in them do not
        exist.
    kind: "equality" or "inequality".

    Raises
    ------
    ConfigError: an unknown kind, tensors that require a gradient, or NaN and infinite entries. ShapeError: shapes that
        do not fit.

    Examples
    --------
    >>> lr.LinearConstraints(torch.ones(1, 3), torch.tensor([1.0]), kind="equality").kind  # x_1 + x_2 + x_3 = 1
    'equality'
    """

    def __init__(self, C: Tensor, d: Tensor | float, kind: Literal["equality", "inequality"] = "equality") -> None:
        check_one_of(kind, ("equality", "inequality"), "LinearConstraints(kind)")
        given = {name: given_tensor(v, f"LinearConstraints({name})") for name, v in (("C", C), ("d", d))}
        for name, t in given.items():
            if t.requires_grad:
                raise ConfigError(f"LinearConstraints({name}): it requires a gradient, but constraints are fixed.")
            if not bool(torch.isfinite(t).all()):
                raise ConfigError(f"LinearConstraints({name}): NaN or infinite entries.")
        self.C, d = given["C"].detach().double(), given["d"].detach().double()
        if self.C.dim() != 2 or 0 in self.C.shape or d.dim() > 1 or d.numel() not in (1, len(self.C)):
            raise ShapeError(
                f"LinearConstraints: got C {tuple(self.C.shape)} and d {tuple(d.shape)}, expected (constraints, "
                "entries of x) and (constraints,)."
            )
        self.d, self.kind = d.expand(len(self.C)).clone(), kind

    def __repr__(self) -> str:
        return f"LinearConstraints({len(self.C)} x {self.C.shape[1]}, kind={self.kind!r})"

    def project(self, x: Tensor) -> Tensor:
        """The nearest point that satisfies them, in the shape and the dtype of x.

        Raises
        ------
        AssumptionError: there is none.
        """
        return Polyhedron([self], x.numel()).project(x)


Constraint = Box | LinearConstraints | Sequence[Box | LinearConstraints]


@dataclass(frozen=True)
class Face:
    """{x : Q^T x = c}: ``normals`` Q (n, k) with orthonormal columns and ``offsets`` c (k,), in float64. held: the
    inequalities that hold with equality on it."""

    normals: Tensor
    offsets: Tensor
    held: tuple[int, ...] = ()

    @classmethod
    def of(cls, rows: Array, sides: Array, held: tuple[int, ...] = ()) -> Face:
        """Where rows x = sides; AssumptionError if nowhere."""
        _, n = rows.shape
        if not len(rows):
            return cls(torch.zeros(n, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64), held)
        U, s, Vt = np.linalg.svd(rows, full_matrices=False)
        rank = int((s > _RANK * s[0]).sum())
        c = (U[:, :rank].T @ sides) / s[:rank]
        if np.linalg.norm(rows @ (Vt[:rank].T @ c) - sides) > _CONSISTENT * (np.linalg.norm(sides) + s[0]):
            raise AssumptionError("LinearConstraints: equalities that contradict each other; no x satisfies them all.")
        return cls(torch.from_numpy(Vt[:rank].T.copy()), torch.from_numpy(c), held)

    def place(self, x: Tensor) -> Tensor:
        """The nearest points in it, (..., n)."""
        if not len(self.offsets):
            return x
        Q, c = self.normals.to(x), self.offsets.to(x)
        if len(c) == len(Q):  # a vertex, without the rounding of what cancels
            return Q @ c + 0.0 * x
        return x - (x @ Q - c) @ Q.T

    def tangent(self, v: Tensor) -> Tensor:
        """The part of vectors (..., n) along it."""
        Q = self.normals.to(v)
        return v - (v @ Q) @ Q.T if Q.shape[1] < len(Q) else 0.0 * v


@dataclass(frozen=True)
class Nearest:
    """A nearest point y, the inequalities that hold it there, and their multipliers > 0."""

    point: Array
    held: tuple[int, ...]
    multipliers: Array


class Polyhedron:
    """All constraints on a vector of n entries: equalities E x = e, and inequalities C x <= d with rows of length 1.

    Raises
    ------
    ConfigError: something else among them. ShapeError: one that is about another number of entries.
    AssumptionError: equalities that contradict each other.
    """

    def __init__(self, constraints: Sequence[Box | LinearConstraints], n: int) -> None:
        equal: list[tuple[Array, Array]] = [(np.zeros((0, n)), np.zeros(0))]
        unequal = list(equal)
        for part in constraints:
            kinds = (Box, LinearConstraints)
            check_type(part, kinds, "constraint", "lr.Box, lr.LinearConstraints(C, d, kind), or a sequence of them")
            if isinstance(part, Box):
                part.check_domain((n,))
                unequal += _sides(part, n)
            else:
                if part.C.shape[1] != n:
                    raise ShapeError(f"{part!r}: x has {n} entries.")
                (equal if part.kind == "equality" else unequal).append((part.C.cpu().numpy(), part.d.cpu().numpy()))
        (self.E, self.e), (C, d) = (tuple(map(np.concatenate, zip(*rows, strict=True))) for rows in (equal, unequal))
        lengths = np.linalg.norm(C, axis=1)
        scale = np.where(lengths > 0, lengths, 1.0)
        self.C, self.d, self.n = C / scale[:, None], d / scale, n
        self.base = Face.of(self.E, self.e)

    @classmethod
    def of(cls, constraint: object, n: int) -> Polyhedron:
        """Of one of them, or of a sequence."""
        parts: Any = constraint if isinstance(constraint, (list, tuple)) else [constraint]
        return cls(parts, n)

    @property
    def bounded_by_equalities_alone(self) -> bool:
        """Whether it has one face, itself."""
        return not len(self.C)

    def face(self, held: Sequence[int]) -> Face:
        """Where these inequalities hold with equality."""
        rows, sides = np.concatenate([self.E, self.C[list(held)]]), np.concatenate([self.e, self.d[list(held)]])
        return Face.of(rows, sides, tuple(held))

    def project(self, x: Tensor) -> Tensor:
        """The nearest point, in the shape and the dtype of x; AssumptionError if there is none."""
        found = self.nearest(x.detach().reshape(-1).double().cpu().numpy()).point
        return torch.from_numpy(found).to(x).view(x.shape)

    def nearest(self, x: Array, metric: Array | None = None, slope: Array | float = 0.0) -> Nearest:
        """argmin over the polyhedron of ½ <y - x, H (y - x)> + <slope, y>, H a metric that is positive definite along
        its equalities; the point next to x without a metric.

        Raises
        ------
        AssumptionError: the polyhedron is empty. LinAlgError: the metric is not positive definite.
        """
        Q, c = self.base.normals.numpy(), self.base.offsets.numpy()
        if metric is None:  # in the coordinates of x, with rows along the base
            rows = self.C - (self.C @ Q) @ Q.T
            y, held, u = _dual_active_set(x - Q @ (Q.T @ x - c), rows, self.d - self.C @ (Q @ c))
            return Nearest(y, held, u)
        origin = Q @ c
        Z = np.linalg.svd(Q, full_matrices=True)[0][:, Q.shape[1] :] if Q.shape[1] else np.eye(self.n)
        reduced = Z.T @ metric @ Z
        factor = np.linalg.cholesky(0.5 * (reduced + reduced.T))
        goal = np.linalg.solve(reduced, Z.T @ (metric @ (x - origin) - slope))
        rows = np.linalg.solve(factor, (self.C @ Z).T).T  # of factor^T w
        y, held, u = _dual_active_set(factor.T @ goal, rows, self.d - self.C @ origin)
        return Nearest(origin + Z @ np.linalg.solve(factor.T, y), held, u)

    def slack(self, x: Array) -> Array:
        """d - C x, with rows of length 1: distances to the sides where positive."""
        found: Array = self.d - self.C @ x
        return found

    def implied(self, face: Face) -> Array:
        """Of each inequality, whether it is constant on the face."""
        Q = face.normals.numpy()
        found: Array = np.linalg.norm(self.C - (self.C @ Q) @ Q.T, axis=1) <= _CONSISTENT
        return found


def _sides(box: Box, n: int) -> list[tuple[Array, Array]]:
    """x <= upper and -x <= -lower, where these are finite."""
    lower, upper = (b.detach().cpu().expand(n).numpy() for b in (box.lower, box.upper))
    unit, above, below = np.eye(n), np.isfinite(upper), np.isfinite(lower)
    return [(unit[above], upper[above]), (-unit[below], -lower[below])]


def _dual_active_set(y: Array, B: Array, d: Array) -> tuple[Array, tuple[int, ...], Array]:
    """The point of {B y <= d} next to y, the rows that hold it, and their multipliers."""
    lengths = np.linalg.norm(B, axis=1)
    live = lengths > _RANK * max(lengths.max(initial=0.0), 1e-300)
    if (d[~live] < -_CONSISTENT).any():
        raise _empty()
    index = np.flatnonzero(live)
    B, d = B[index] / lengths[index, None], d[index] / lengths[index]
    held: list[int] = []
    u = np.zeros(0)
    while len(B):
        excess = B @ y - d
        excess[held] = -np.inf
        q = int(excess.argmax())
        if excess[q] <= _FEASIBLE * (1.0 + abs(d[q]) + np.linalg.norm(y)):
            break
        y, held, u = _enter(y, B, d, held, u, q)
    order = np.argsort(index[held]) if held else np.zeros(0, dtype=int)
    chosen = [held[k] for k in order]
    return y, tuple(int(index[k]) for k in chosen), u[order] / lengths[index[chosen]]


def _enter(y: Array, B: Array, d: Array, held: list[int], u: Array, q: int) -> tuple[Array, list[int], Array]:
    """Move until row q holds with equality, rows whose multipliers come to 0 leaving on the way."""
    entering = 0.0
    while True:
        r = np.linalg.lstsq(B[held].T, B[q], rcond=None)[0] if held else np.zeros(0)
        z = B[q] - r @ B[held]
        gain = float(z @ B[q])
        falling = np.flatnonzero(r > 0)
        steps = u[falling] / r[falling]
        partial = float(steps.min(initial=np.inf))
        full = float(B[q] @ y - d[q]) / gain if gain > _RANK else np.inf
        step = min(partial, full)
        if not np.isfinite(step):
            raise _empty()
        if np.isfinite(full):
            y = y - step * z
        u, entering = u - step * r, entering + step
        if step == full:
            return y, [*held, q], np.append(np.maximum(u, 0.0), entering)
        leaving = int(falling[steps.argmin()])
        held, u = held[:leaving] + held[leaving + 1 :], np.delete(u, leaving)


def _empty() -> AssumptionError:
    return AssumptionError("LinearConstraints: no x satisfies all constraints; loosen or leave out some of them.")
