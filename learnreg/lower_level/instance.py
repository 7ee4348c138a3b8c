"""The lower-level problem at given data with its parameters frozen, as solvers and certificates see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import torch
from torch import Tensor

from learnreg.convolutions.filter_bank import FilterBank, weighted_norm_bound
from learnreg.linear.operator import LinearOperator
from learnreg.linear.parameter_groups import ParameterGroup
from learnreg.lower_level.constraints import Box
from learnreg.lower_level.latent import JointOperator, Latent
from learnreg.lower_level.quadratic import Quadratic
from learnreg.potentials.base import Potential

__all__ = ["Counter", "Instance", "lifted", "weighted_square"]

T = TypeVar("T")

_PART_BYTES = 2 * 1024**2


def weighted_square(operator: LinearOperator, weights: Tensor | float) -> float:
    """Bound of ‖√weights K‖² for non-negative weights of the channels of K, or of their groups, (n, 1, 1), or one for
    all."""
    weights = torch.as_tensor(weights, dtype=torch.float64).detach()
    if isinstance(operator, FilterBank) and weights.numel() == operator.groups:
        return weighted_norm_bound(operator, operator.per_filter(weights), tight=False) ** 2
    return float(weights.max()) * operator.norm_bound() ** 2


class Counter:
    """Number of operator applications so far."""

    def __init__(self) -> None:
        self.applications = 0


@dataclass(frozen=True)
class Instance:
    """The lower-level problem for given data, parameters detached: E(x) = ½<x,Mx> - <q,x> + f(Kx) over the box. f is
    convex, or so weakly convex that E is strongly convex.

    ``quadratic`` is M, ``K`` the regularizer's analysis operator; the forward operator of M runs beside it, so that one
    call of ``apply``/``adjoint`` together with its data part counts as one application.

    With ``latent`` variables z, x stands for (x, z / latent_scale), with more channels, throughout.
    """

    quadratic: Quadratic
    q: Tensor
    analysis: LinearOperator
    potential: Potential
    box: Box
    strong_convexity: float
    counter: Counter
    latent: Latent | None = None
    latent_scale: float = 1.0

    @property
    def forward(self) -> LinearOperator:
        """The forward operator, within M."""
        return self.quadratic.forward

    @property
    def batch(self) -> int:
        return int(self.q.shape[0])

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """All that operator, potential and latent variables say, in this order."""
        latent = () if self.latent is None else self.latent.parameter_groups()
        return (*self.analysis.parameter_groups(), *self.potential.parameter_groups(), *latent)

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
        if self.strong_convexity <= 0:
            return math.inf
        bend = weighted_square(self.analysis, self.potential.curvature_limit)
        return (self.quadratic.norm() + bend) / self.strong_convexity

    def extended(self, x: Tensor) -> Tensor:
        """(x, z / latent_scale) with the best z for x; x itself without latent variables."""
        if self.latent is None:
            return x
        return self.joined(x, self.latent.solve(x))

    def started(self, x: Tensor) -> Tensor:
        """The same with a guess of z, for three applications."""
        if self.latent is None:
            return x
        self.counter.applications += 3
        return self.joined(x, self.latent.start(x))

    def joined(self, x: Tensor, z: Tensor | None) -> Tensor:
        """(x, z / latent_scale); x itself without latent variables."""
        return x if z is None else torch.cat([x, z / self.latent_scale], 1)

    def latent_part(self, v: Tensor) -> Tensor | None:
        """z of v = (x, z / latent_scale), or None."""
        return None if self.latent is None else self.latent_scale * v[:, self.latent.image_channels :]

    def select(self, index: Tensor) -> Instance:
        """The instance restricted to some samples, sharing the counter."""
        return self._part(index, self.counter)

    def _part(self, index: Tensor | slice, counter: Counter) -> Instance:
        return replace(self, quadratic=self.quadratic.select(index), q=self.q[index], counter=counter)

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


def lifted(instance: Instance, latent: Latent, modulus: float) -> Instance:
    """The instance in image and latent variables, which get the modulus of the image, ``modulus``."""
    scale, own = latent.scale(modulus), modulus if modulus > 0 else latent.modulus
    operator, q = instance.forward, instance.q
    analysis = latent.operator(scale)
    forward = JointOperator(operator, latent, math.sqrt(max(own - instance.quadratic.ridge, 0.0)))
    shape = (latent.channels, *operator.domain_shape[1:])
    cost = (scale * latent.cost).to(q).expand(q.shape[0], *shape)
    exact = operator.adjoint_mismatch() == 0.0 and analysis.adjoint_mismatch() == 0.0
    return replace(
        instance,
        quadratic=instance.quadratic.lifted(forward, shape, own),
        q=torch.cat([q, -cost], 1),
        analysis=analysis,
        box=latent.box(instance.box),
        strong_convexity=modulus if exact else 0.0,
        latent=latent,
        latent_scale=scale,
    )
