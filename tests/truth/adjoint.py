"""Adjoint equations whose Hessian is a dense matrix, by applying it to every unit image."""

from __future__ import annotations

from dataclasses import replace

import registry
import torch
from torch import Tensor

import learnreg as lr
from learnreg.lower_level.adjoint_equation import AdjointEquation

__all__ = ["dense_hessian", "equation_of", "indefinite", "solution_of"]


def equation_of(
    problem: str = "denoising",
    regularizer: str = "FieldsOfExperts",
    box: lr.Box | None = None,
    dtype: torch.dtype = torch.float64,
) -> AdjointEquation:
    """At a random image of a registered problem, part of it at the bounds of the box."""
    built = registry.build(problem, regularizer, box).to(dtype)
    x_true, b = (t.to(dtype) for t in registry.measure(built.double()))
    built.to(dtype)
    instance = built.instance(b)
    x = instance.box.prox(registry.rand(*x_true.shape, seed=30).to(dtype))
    with torch.no_grad():
        return AdjointEquation.at(instance, x, instance.apply(x), registry.randn(*x.shape, seed=31).to(dtype))


def indefinite(equation: AdjointEquation, shift: float) -> AdjointEquation:
    """The same with ``shift`` less on the diagonal, of which nothing is known."""
    instance = equation.instance
    quadratic = replace(instance.quadratic, diagonal=instance.quadratic.diagonal - shift)  # type: ignore[call-arg,attr-defined]
    return replace(equation, instance=replace(instance, quadratic=quadratic, strong_convexity=0.0))


@torch.no_grad()
def dense_hessian(equation: AdjointEquation) -> Tensor:
    """H of each sample, (batch, n, n), 0 for the pixels that are held."""
    rhs = equation.rhs
    units = torch.eye(rhs[0].numel(), dtype=rhs.dtype).unflatten(1, rhs.shape[1:])
    columns = [equation.hessian(equation.project(e.expand_as(rhs).contiguous())) for e in units]
    return torch.stack([c.flatten(1) for c in columns], 2)


@torch.no_grad()
def solution_of(equation: AdjointEquation) -> Tensor:
    """The X of least norm, which is 0 off the free pixels."""
    found: Tensor = torch.linalg.pinv(dense_hessian(equation), hermitian=True) @ equation.rhs.flatten(1)[..., None]
    return found.reshape(equation.rhs.shape)
