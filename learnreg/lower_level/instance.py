"""The lower-level problem at given data with its parameters frozen, as solvers and certificates see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

import torch
from torch import Tensor

from learnreg.linear.operator import LinearOperator
from learnreg.linear.parameter_groups import ParameterGroup
from learnreg.lower_level.constraints import Box
from learnreg.lower_level.latent import Latent, NoLatent
from learnreg.lower_level.quadratic import Quadratic
from learnreg.potentials.absolute_value import AbsoluteValue
from learnreg.potentials.base import Potential
from learnreg.potentials.proximal import ProximalPotential
from learnreg.result import Brief

__all__ = ["Counter", "Instance"]

T = TypeVar("T")

_PART_BYTES = 2 * 1024**2


def _start(quadratic: Quadratic, rhs: Tensor, b: Tensor) -> Tensor:
    return quadratic.start(rhs, b)


class Counter:
    """Number of operator applications so far."""

    def __init__(self) -> None:
        self.applications = 0


@dataclass(frozen=True, repr=False)
class Instance(Brief):
    """The lower-level problem for given data, parameters detached: E(x) = ½<x,Mx> - <q,x> + f(Kx) over the box. f is
    convex, or so weakly convex that E is strongly convex, unless bounds are to be ``local``.

    ``quadratic`` is M, ``K`` the regularizer's analysis operator; the forward operator of M runs beside it, so that one
    call of ``apply``/``adjoint`` together with its data part counts as one application.

    With ``latent`` variables z, x stands for (x, z / latent.scale), with more channels, throughout.
    ``unexamined``: what nobody examined of the potential, so that nothing is certified; "" where all is known.
    ``local``: bounds are asked for of the minimiser in a ball, and no modulus of the whole energy is known, or a small
    one.
    ``guess``: from M, q and measurements to a guess of what minimises the data term and the ridge.
    """

    quadratic: Quadratic
    q: Tensor
    analysis: LinearOperator
    potential: Potential
    box: Box
    strong_convexity: float
    counter: Counter
    latent: Latent = field(default_factory=NoLatent)
    unexamined: str = ""
    local: bool = False
    guess: Callable[[Quadratic, Tensor, Tensor], Tensor] = _start

    @property
    def forward(self) -> LinearOperator:
        """The forward operator, within M."""
        return self.quadratic.forward

    @property
    def batch(self) -> int:
        return int(self.q.shape[0])

    @property
    def domain(self) -> tuple[int, ...]:
        """The shape of its variables, without the batch axis."""
        return tuple(self.q.shape[1:])

    @property
    def proximal(self) -> ProximalPotential:
        """The potential, for iterations that take its proximal maps: only where ``prox_obstacle`` is empty."""
        return cast(ProximalPotential, self.potential)

    @property
    def nonsmooth(self) -> AbsoluteValue:
        """The potential, where it is not ``differentiable``."""
        return cast(AbsoluteValue, self.potential)

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """All that operator, potential and latent variables say, in this order."""
        return (*self.analysis.parameter_groups(), *self.potential.parameter_groups(), *self.latent.parameter_groups())

    def apply(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """K x, in the memory of ``out`` if given; counts one per application on the batch."""
        self.counter.applications += 1
        return cast(Tensor, self.analysis(x)) if out is None else self.analysis.forward_into(x, out)

    def adjoint(self, y: Tensor) -> Tensor:
        """K^T y; counts one."""
        self.counter.applications += 1
        return self.analysis.adjoint(y)

    def full_gradient(self, x: Tensor) -> Tensor:
        """∇E(x) without the constraint; counts 2."""
        return self.quadratic(x) - self.q + self.adjoint(self.potential.grad(self.apply(x)))

    def condition_bound(self) -> float:
        """Upper bound of the Hessian's condition number, from the largest curvature of each channel; infinite without a
        modulus."""
        return math.inf if self.strong_convexity <= 0 else self.gradient_lipschitz() / self.strong_convexity

    def gradient_lipschitz(self) -> float:
        """Upper bound of the Hessian's norm, from the largest curvature of each channel."""
        return self.quadratic.norm() + self.potential.stiffness(self.analysis)

    def started(self, x: Tensor) -> Tensor:
        """(x, z^) with a guess of the latent variables z, for three applications; x itself without any."""
        self.counter.applications += self.latent.guess_applications
        return self.latent.guess(x)

    def select(self, index: Tensor) -> Instance:
        """The instance restricted to some samples, sharing the counter."""
        return self._part(index, self.counter)

    def _part(self, index: Tensor | slice, counter: Counter) -> Instance:
        quadratic, potential = self.quadratic.select(index), self.potential.select(index)
        return replace(self, quadratic=quadratic, q=self.q[index], potential=potential, counter=counter)

    def parts(self) -> Iterator[tuple[Instance, slice]]:
        """The instance in parts of the batch whose responses stay small, for work that needs many of them; their
        operator applications count once for the batch."""
        size = math.prod(self.analysis.range_shape) * self.q.element_size()
        count = self.batch if size * self.batch <= _PART_BYTES else max(1, _PART_BYTES // size)
        for first in range(0, self.batch, count):
            index = slice(first, first + count)
            counter = self.counter if first == 0 else Counter()
            yield self._part(index, counter), index

    def by_parts(self, work: Callable[[Instance, slice], T]) -> list[T]:
        """``work`` on each of :meth:`parts`, one after the other. Iterations may differ between parts: applications
        count as in one run over the whole batch, which lasts as long as its slowest part."""
        results, most = [], 0
        for part, index in self.parts():
            counted = replace(part, counter=Counter())
            results.append(work(counted, index))
            most = max(most, counted.counter.applications)
        self.counter.applications += most
        return results

    def to(self, dtype: torch.dtype) -> Instance:
        """The instance in another dtype, sharing the counter."""
        if self.q.dtype == dtype:
            return self
        quadratic, potential = self.quadratic.to(dtype), self.potential.to(dtype)
        return replace(self, quadratic=quadratic, q=self.q.to(dtype), potential=potential)
