"""A point of a bilevel problem: everything that a method starts from and a certificate judges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from learnreg.losses import UpperLoss
from learnreg.lower_level.data_terms import DataTerm
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.lower_level.saddle_terms import SaddleTerms
from learnreg.result import Brief

__all__ = ["Point"]


@dataclass(frozen=True, eq=False, repr=False)
class Point(Brief):
    """State x and adjoint state X of a problem at its data.

    frozen, b: the lower-level problem and the measurements. instance: ``frozen`` at b, in the precision of the
    computation. loss: one of all variables of the instance, like x and X, (batch, *its domain). t: dual pull-back that
    belongs to x, where a solver left one. warm: x is not just any starting point. whole: of a point that is part of a
    batch, the batch and where in it; only the loss couples samples.
    """

    frozen: FrozenProblem
    instance: Instance
    b: Tensor
    loss: UpperLoss
    x: Tensor
    X: Tensor
    t: Tensor | None = None
    warm: bool = False
    whole: tuple[Point, slice] | None = None

    @classmethod
    def of(cls, problem: LowerLevelProblem | FrozenProblem, b: Tensor, loss: UpperLoss, x: Tensor, X: Tensor) -> Point:
        """At measurements b, in their precision; ``loss`` is one of images, x and X have all variables."""
        frozen = problem.frozen()
        instance = frozen.at(b)
        return cls(frozen, instance, b, instance.latent.loss(loss), x, X)

    @cached_property
    def loss_gradient(self) -> Tensor:
        """∂_x ell of the batch at x."""
        if self.whole is None:
            return self.loss.gradient(self.x)
        batch, index = self.whole
        return batch.loss_gradient[index]

    @cached_property
    def data_term(self) -> DataTerm:
        """That of these measurements."""
        if self.whole is None:
            return self.frozen.data_term.at(self.b)
        batch, index = self.whole
        return batch.data_term.select(index)

    @property
    def terms(self) -> SaddleTerms:
        """Those of the instance, differentiable in the parameters, but for the precision."""
        if self.whole is not None:
            batch, index = self.whole
            return batch.terms.select(index)
        return self.data_term.joins(self.frozen.terms.at(self.instance.latent.scale), self.frozen.operator)

    def at(self, x: Tensor, X: Tensor) -> Point:
        """Another point of the same problem, which solvers may start from."""
        return replace(self, x=x, X=X, t=None, warm=True)

    def on(self, instance: Instance) -> Point:
        """The same point in the precision of another instance of the problem."""
        dtype = instance.q.dtype
        t = None if self.t is None else self.t.to(dtype)
        return replace(self, instance=instance, x=self.x.to(dtype), X=self.X.to(dtype), t=t)

    def parts(self) -> Iterator[tuple[Point, slice]]:
        """The point in the parts of :meth:`Instance.parts`."""
        for part, index in self.instance.parts():
            t = None if self.t is None else self.t[index]
            x, X, b = self.x[index], self.X[index], self.b[index]
            yield replace(self, instance=part, b=b, x=x, X=X, t=t, whole=(self, index)), index
