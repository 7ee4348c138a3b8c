"""Adjoint work shared between upper steps: warm starts, and Krylov spaces recycled by deflation, on a training-like
sequence of parameters.

python benchmarks/recycling.py --record
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from harness import Table, arguments, finish
from torch import Tensor

import learnreg as lr
from learnreg.certificates.judgement import gradient_distance, gradient_norm
from learnreg.datasets import natural_images
from learnreg.hypergradients.base import Goal, evaluate
from learnreg.linear.operator import LinearOperator
from learnreg.linear.samples import norm_samples
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.point import Point
from learnreg.operators import Blur, Identity
from learnreg.regularizers import FieldsOfExperts
from learnreg.solvers.conjugate_gradient import CGState, ConjugateGradient
from learnreg.solvers.preconditioner import preconditioned
from learnreg.solvers.solve import initial_point

SIDE, FILTERS, SIZE, SIGMA, SMOOTHING, WEIGHT = 24, 12, 5, 0.1, 3e-3, 0.0133
UPDATES, STEP_SIZE = 30, 3e-3
STATE, ADJOINT = 1e-3, 1e-2
"""Relative accuracies of the state and of the adjoint equation."""

RECYCLED = (5, 10, 20)
CERTIFIED = 0.1
"""Relative tolerance of the certified sequence."""


class RecycledCG(ConjugateGradient):
    """Conjugate gradients deflated by a space of an earlier system, of one image.

    H is never that of before, so that H U is formed anew: count Hessian products. The next space are harmonic Ritz
    vectors of P H, P the preconditioner, of its smallest or largest Ritz values, from U and the first directions.

    Source: Saad, Yeung, Erhel and Guyomarc'h, A deflated version of the conjugate gradient algorithm (2000); harmonic
    vectors between systems: Parks et al. (2006); for bilevel learning: Ehrhardt, Gazzola and Scott, arXiv 2412.08264.
    """

    def __init__(self, count: int, largest: bool = False, precondition: bool = True) -> None:
        super().__init__(precondition=precondition)
        self.count, self.largest = count, largest
        self.space: Tensor | None = None

    def init(self, equation: AdjointEquation, X: Tensor) -> CGState:
        self._finish()
        state = super().init(equation, X)
        self._P = state.preconditioner
        self._directions: list[tuple[Tensor, Tensor]] = []
        self.image: Tensor | None = None
        if self.space is None:
            return state
        instance, k = equation.instance, len(self.space)
        self.image = equation.hessian(self.space)
        instance.counter.applications += 2 * (k - 1)
        U, C = self.space.flatten(1), self.image.flatten(1)
        gram = U @ C.T
        self._inverse = torch.linalg.inv(0.5 * (gram + gram.T).double()).to(U)
        shift = self._combined(U @ state.r.flatten())
        X = state.X + shift
        r = state.r - self._combined(U @ state.r.flatten(), self.image)
        z = preconditioned(equation, state.preconditioner, r)
        rz = (r * z).sum().reshape(1)
        return replace(state, X=X, r=r, p=self._deflated(z), rr=r.square().sum().reshape(1), rz=rz)

    def step(self, equation: AdjointEquation, state: CGState) -> CGState:
        h_p = equation.hessian(state.p, state.memory)
        if len(self._directions) < 2 * self.count:
            self._directions.append((state.p, h_p))
        curvature = (state.p * h_p).sum()
        alpha = state.rz / curvature
        r = state.r - alpha * h_p
        z = preconditioned(equation, state.preconditioner, r)
        rz = (r * z).sum().reshape(1)
        p = (self._deflated(z) if self.image is not None else z) + rz / state.rz * state.p
        return replace(state, X=state.X + alpha * state.p, r=r, p=p, rr=r.square().sum().reshape(1), rz=rz)

    def _combined(self, coefficients: Tensor, vectors: Tensor | None = None) -> Tensor:
        """sum_i (G^-1 c)_i u_i."""
        vectors = self.space if vectors is None else vectors
        assert vectors is not None
        return torch.tensordot(self._inverse @ coefficients, vectors, 1)[None]

    def _deflated(self, z: Tensor) -> Tensor:
        assert self.image is not None
        return z - self._combined(self.image.flatten(1) @ z.flatten())

    def _finish(self) -> None:
        """The next space, from what the last solve met."""
        if not getattr(self, "_directions", None):
            return
        Z, HZ = (torch.cat(parts) for parts in zip(*self._directions, strict=True))
        if self.space is not None and self.image is not None:
            Z, HZ = torch.cat([self.space, Z]), torch.cat([self.image, HZ])
        size = (Z * HZ).flatten(1).sum(1).sqrt()[:, None, None, None]
        Z, HZ = Z / size, HZ / size
        PHZ = HZ if self._P is None else torch.cat([self._P(v[None]) for v in HZ])
        A, B = ((HZ.flatten(1) @ PHZ.flatten(1).T).double(), (Z.flatten(1) @ HZ.flatten(1).T).double())
        values, vectors = torch.linalg.eigh(0.5 * (B + B.T))
        kept = values > 1e-6 * values[-1]
        root = vectors[:, kept] / values[kept].sqrt()
        _, vectors = torch.linalg.eigh(root.T @ (0.5 * (A + A.T)) @ root)
        chosen = vectors.flip(1) if self.largest else vectors
        found = root @ chosen[:, : self.count]
        self.space = torch.tensordot(found.T.to(Z), Z, 1)


@dataclass
class Variant:
    """count: recycled vectors, 0 for none. precondition: of conjugate gradients."""

    warm: bool = True
    count: int = 0
    largest: bool = False
    precondition: bool = True

    def solver(self) -> ConjugateGradient:
        if not self.count:
            return ConjugateGradient(precondition=self.precondition)
        return RecycledCG(self.count, self.largest, self.precondition)


@dataclass(frozen=True)
class Update:
    """What a hypergradient cost: CPU seconds, steps of its adjoint solve (of the slower of both, if certified), and
    operator applications."""

    seconds: float
    steps: int
    applications: int
    gradient: dict[str, Tensor]


@dataclass
class Sequence:
    """A problem at the parameters of Adam's updates."""

    name: str
    operator: LinearOperator
    ridge: float
    b: Tensor
    x_true: Tensor
    frozen: list[FrozenProblem] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, operator: LinearOperator, ridge: float) -> Sequence:
        photograph = next(iter(natural_images("train").values()))
        x_true = photograph[None, :, 60 : 60 + SIDE, 60 : 60 + SIDE].float()
        with torch.no_grad():
            b = operator(x_true)
        scale = float(b.std()) / float(x_true.std())
        noise = torch.randn(b.shape, generator=torch.Generator().manual_seed(0))
        found = cls(name, operator, ridge, b + SIGMA * scale * noise, x_true)
        found._record()
        return found

    def _record(self) -> None:
        experts = FieldsOfExperts(FILTERS, SIZE, generator=torch.Generator().manual_seed(0)).filters.detach()
        weights, smoothings = torch.full((FILTERS,), WEIGHT), torch.full((FILTERS,), SMOOTHING)
        regularizer = FieldsOfExperts.from_arrays(experts, weights, smoothings, "reflect")
        problem = lr.LowerLevelProblem(self.operator, regularizer, ridge=self.ridge)
        optimizer = torch.optim.Adam(regularizer.parameters(), STEP_SIZE)
        start: Point | None = None
        for _ in range(UPDATES):
            self.frozen.append(problem.frozen())
            start, gradient, _ = self.hypergradient(self.frozen[-1], lr.Implicit(ConjugateGradient()), start)
            for key, p in problem.learnable().items():
                p.grad = gradient[key].clone()
            optimizer.step()

    def hypergradient(
        self,
        frozen: FrozenProblem,
        method: lr.Implicit,
        start: Point | None,
        warm: bool = True,
        adjoint: float = ADJOINT,
    ) -> tuple[Point, dict[str, Tensor], tuple[int, int]]:
        """From the state of the update before, and with ``warm`` from its adjoint state; with the adjoint steps and the
        applications of all."""
        instance = frozen.at(self.b)
        x = initial_point(instance, self.b) if start is None else start.x
        X = torch.zeros_like(x) if start is None or not warm else start.X
        point = Point(frozen, instance, self.b, lr.SquaredError(self.x_true), x, X, warm=start is not None)
        size = norm_samples(self.x_true)
        slope = norm_samples(point.loss_gradient)
        found = evaluate(method, point, Goal(STATE * size, adjoint * slope))
        return found.point, found.gradient, (found.outcome.adjoint_steps, instance.counter.applications)

    def uncertified(self, variant: Variant, adjoint: float | None = None) -> Iterator[Update]:
        """One update after the other."""
        method, start = lr.Implicit(variant.solver()), None
        for frozen in self.frozen:
            began = time.process_time()
            start, gradient, counts = self.hypergradient(frozen, method, start, variant.warm, adjoint or ADJOINT)
            yield Update(time.process_time() - began, *counts, gradient)

    def certified(self, with_norm: bool) -> Iterator[Update]:
        """The same by certified hypergradients, each from where the last one ended; ``with_norm``: and with the norm of
        its filter bank."""
        loss, start = lr.SquaredError(self.x_true), None
        for frozen in self.frozen:
            problem = copy.copy(frozen)
            problem.__dict__.pop("fixed", None)  # what is known of its norms
            began = time.process_time()
            found = lr.hypergradient(problem, self.b, loss, lr.Implicit(), CERTIFIED, start=start)
            seconds = time.process_time() - began
            assert found.certified
            yield Update(seconds, found.steps, found.operator_applications, found.gradient)
            start = lr.Start.after(found) if with_norm else replace(lr.Start.after(found), normed=None)


def sequences() -> Iterator[Sequence]:
    shape = (1, SIDE, SIDE)
    yield Sequence.of("denoising", Identity(shape), 0.0)
    line = torch.linspace(-1.5, 1.5, 7)
    kernel = torch.exp(-(line[:, None] ** 2) - line[None] ** 2)
    yield Sequence.of("blur", Blur(kernel / kernel.sum(), shape, "reflect"), 1e-2)
    yield Sequence.of("CT", lr.operators.ParallelBeam2D(SIDE, SIDE), 1e-3)


def variants(precondition: bool) -> dict[str, Variant]:
    """Without a preconditioner, where recycling should do more, the middle number alone."""
    middle = RECYCLED[len(RECYCLED) // 2]
    if not precondition:
        found = {"warm start": Variant(), f"{middle} recycled, warm start": Variant(count=middle)}
        found[f"{middle} recycled of the largest Ritz values, warm start"] = Variant(count=middle, largest=True)
    else:
        found = {"cold": Variant(warm=False), "warm start": Variant()}
        found[f"{middle} recycled, cold"] = Variant(warm=False, count=middle)
        found |= {f"{k} recycled, warm start": Variant(count=k) for k in RECYCLED}
    return {name: replace(v, precondition=precondition) for name, v in found.items()}


def rows(sequence: Sequence) -> Iterator[dict[str, Any]]:
    """Variants take turns at every update; ratios are to the warm start with the same preconditioner."""
    exact = [update.gradient for update in sequence.uncertified(Variant(), ADJOINT / 100.0)]
    for preconditioned_ in ("yes", "no"):
        chosen = variants(preconditioned_ == "yes")
        updates = zip(*(sequence.uncertified(variant) for variant in chosen.values()), strict=True)
        yield from _rows(
            sequence.name, preconditioned_, dict(zip(chosen, zip(*updates, strict=True), strict=True)), exact
        )
    updates = zip(sequence.certified(False), sequence.certified(True), strict=True)
    names = ("warm start", "warm start and norm")
    runs = {f"certified, {name}": own for name, own in zip(names, zip(*updates, strict=True), strict=True)}
    yield from _rows(sequence.name, "yes", runs, exact)


def _rows(
    problem: str, preconditioned_: str, runs: Mapping[str, tuple[Update, ...]], exact: list[dict[str, Tensor]]
) -> Iterator[dict[str, Any]]:
    """Of all updates but the first."""
    usual = next(sum(u.seconds for u in own[1:]) for name, own in runs.items() if name.endswith("warm start"))
    for name, own in runs.items():
        later, seconds = own[1:], sum(u.seconds for u in own[1:])
        errors = (gradient_distance(u.gradient, e) / gradient_norm(e) for u, e in zip(own, exact, strict=True))
        yield {
            "problem": problem,
            "preconditioned": preconditioned_,
            "adjoint solve": name,
            "steps": round(sum(u.steps for u in later) / len(later), 1),
            "applications": round(sum(u.applications for u in later) / len(later), 1),
            "CPU ms": round(1e3 * seconds / len(later), 1),
            "over warm start": round(seconds / usual, 3),
            "largest error": max(errors),
        }


def main() -> None:
    quick = {"SIDE": 16, "FILTERS": 4, "SIZE": 3, "UPDATES": 3, "RECYCLED": (2,)}
    options = arguments(__doc__ or "", quick=quick)
    table = Table(
        name="recycling",
        title="Adjoint work shared between upper steps",
        command="python benchmarks/recycling.py --record",
        text=(
            f"{UPDATES} updates of Adam (step size {STEP_SIZE:g}) on a Field of Experts ({FILTERS} filters "
            f"{SIZE}x{SIZE}) and one image of {SIDE}² pixels: the same parameters for all, states to {STATE:g} and "
            f"adjoint equations to {ADJOINT:g}, states from the update before. *Recycled*: conjugate gradients "
            "deflated by harmonic Ritz vectors of the update before, of the smallest Ritz values unless it says "
            "otherwise. Variants take turns at every update; means over all but the first. CPU time and applications "
            "are those of the whole hypergradient; the largest error is relative to gradients of adjoint states 100 "
            "times as accurate."
        ),
        order=62,
    )
    for sequence in sequences():
        for row in rows(sequence):
            print(row, file=sys.stderr, flush=True)
            table.rows.append(row)
    deflated = [row for row in table.rows if "recycled" in row["adjoint solve"]]
    for preconditioned_, title in (("yes", "preconditioned"), ("no", "without a preconditioner")):
        best = {}
        for row in deflated:
            if row["preconditioned"] == preconditioned_:
                best[row["problem"]] = min(best.get(row["problem"], 9.0), row["over warm start"])
        for problem, ratio in best.items():
            table.tracked[f"best recycling over warm start, {title}, {problem}"] = ratio
    finish(table, options)


if __name__ == "__main__":
    main()
