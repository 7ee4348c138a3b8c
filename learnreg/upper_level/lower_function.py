"""The two functions of a bilevel problem at parameters and data: the lower one as a regularizer of a vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from learnreg.errors import ConfigError, ShapeError
from learnreg.linear.arguments import real_number
from learnreg.lower_level.linear_constraints import Face
from learnreg.lower_level.regularizer import Regularizer
from learnreg.potentials.value_examination import Declared
from learnreg.upper_level.trees import Tree, Variables

__all__ = ["Constant", "Function", "Functions", "LowerFunction"]

Function = Callable[[Any, Any, Any], Tensor]
Constant = float | Callable[[Any, Any], float] | None

_POWER_STEPS = 4


@dataclass(frozen=True, repr=False)
class Functions:
    """lower, upper: of (x, theta, data). constants: what is declared of them, numbers or functions of (theta, data).

    Raises
    ------
    ConfigError: no functions, or constants that are none.
    """

    lower: Function
    upper: Function
    constants: Mapping[str, Constant]

    def __post_init__(self) -> None:
        functions: dict[str, object] = {"lower": self.lower, "upper": self.upper}
        for name, function in functions.items():
            if not callable(function):
                kind = type(function).__name__
                raise ConfigError(f"BilevelProblem({name}): got {kind}, expected a function of (x, theta, data).")
        for name, value in self.constants.items():
            if value is not None and not callable(value):
                _checked_constant(value, name)

    def __repr__(self) -> str:
        known = [f"{name}={value}" for name, value in self.constants.items() if value is not None]
        return ", ".join([_name(self.lower), _name(self.upper), *known])


class LowerFunction(Regularizer):
    """The lower level as a regularizer of the vector of all entries of x; its parameters are theta."""

    def __init__(self, functions: Functions, theta: Variables, x: Variables, data: Tree) -> None:
        super().__init__()
        self._functions, self._shapes = functions, (theta, x)
        self._data = data
        self.project: Callable[[], Any] | None = None
        self.normal_weight = 1.0
        self.held: tuple[int, ...] = ()
        self.register_buffer("normals", torch.zeros(sum(map(math.prod, x.shapes.values())), 0))
        self.register_buffer("offsets", torch.zeros(0))
        for k, t in enumerate(theta.tensors.values()):
            self.register_parameter(f"theta{k}", t if isinstance(t, nn.Parameter) else nn.Parameter(t.detach()))
        for k, t in enumerate(data.leaves.values()):
            self.register_buffer(f"data{k}", t.detach())

    def theta(self, dtype: torch.dtype) -> list[Tensor]:
        """The parameters in a precision, detached."""
        return [p.detach().to(dtype) for p in self._parameters.values() if p is not None]

    def _arguments(self, v: Tensor, theta: Sequence[Tensor]) -> tuple[Any, Any, Any]:
        (theta_form, x_form), dtype = self._shapes, v.dtype
        buffers = [t for name, t in self._buffers.items() if t is not None and name.startswith("data")]
        data = [t.to(dtype) if t.is_floating_point() else t for t in buffers]
        named = dict(zip(theta_form.shapes, theta, strict=True))
        return x_form.shaped(v), named[theta_form.name] if theta_form.single else named, self._data.built(data)

    def value(self, x: Tensor) -> Tensor:
        theta, face = [p for p in self._parameters.values() if p is not None], self.face
        found = [_numbers(self._functions.lower(*self._arguments(face.place(v), theta)), "lower").sum() for v in x]
        values = torch.stack(found)
        if not len(face.offsets):
            return values
        apart = (x @ self.normals.to(x) - self.offsets.to(x)).square().sum(1)
        return values + 0.5 * (self.constant("strong_convexity") or self.normal_weight) * apart

    def upper(self, x: Tensor, theta: list[Tensor]) -> Tensor:
        """The loss at a vector (1, n)."""
        return _numbers(self._functions.upper(*self._arguments(self.face.place(x[0]), theta)), "upper").mean()

    # ---- linear constraints ------------------------------------------------------------------------------------------

    @property
    def face(self) -> Face:
        """The affine subspace that x is moved to: with P = I - Q Q^T the value is lower(x - Q (Q^T x - c)) plus
        w/2 ‖Q^T x - c‖², w the modulus, so that the energy splits into that of the coordinates along the face and a
        known one across, with the same constants."""
        return Face(self.normals, self.offsets, self.held)

    def restrict(self, face: Face) -> None:
        """To a face of the linear constraints."""
        self.normals, self.offsets, self.held = face.normals, face.offsets, face.held

    def energy(self, x: Tensor) -> Tensor:
        """lower at a vector (n,) without constraints, a scalar."""
        return _numbers(self._functions.lower(*self._arguments(x, self.theta(x.dtype))), "lower").sum()

    def direct(self, x: Tensor) -> tuple[dict[str, Tensor], bool]:
        """∂_theta upper at a vector (1, n), and whether upper depends on theta at all."""
        with torch.enable_grad():
            leaves = [t.requires_grad_() for t in self.theta(x.dtype)]
            value = self.upper(x.detach(), leaves)
            grads: tuple[Tensor | None, ...] = (None,) * len(leaves)
            if value.requires_grad:
                grads = torch.autograd.grad(value, leaves, allow_unused=True)
        filled = [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True)]
        return dict(zip(self._parameters, filled, strict=True)), any(g is not None for g in grads)

    def fastest_direct(self, x: Tensor) -> float:
        """How fast ∂_theta upper changes with x near it, by a few power steps: at least that at some point."""
        generator = torch.Generator().manual_seed(3)
        size = float(x.norm()) or 1.0
        d = torch.randn(x.shape, dtype=x.dtype, generator=generator).to(x.device)
        largest = 0.0
        for _ in range(_POWER_STEPS):
            length = float(d.norm())
            if not length > 0:
                break
            d = d / length
            with torch.enable_grad():
                point = x.detach().clone().requires_grad_()
                leaves = [t.requires_grad_() for t in self.theta(x.dtype)]
                grads = torch.autograd.grad(
                    self.upper(point, leaves), leaves, create_graph=True, materialize_grads=True
                )
                here = torch.cat([g.reshape(-1) for g in grads])
            there = torch.cat([g.reshape(-1) for g in self.direct(x + 1e-3 * size * d)[0].values()])
            change = there - here.detach()
            largest = max(largest, float(change.norm()) / (1e-3 * size))
            if not here.requires_grad:
                break
            d = torch.autograd.grad(here, point, change, materialize_grads=True)[0]
        return largest

    def project_(self) -> None:
        if self.project is not None:
            self.project()

    # ---- constants ---------------------------------------------------------------------------------------------------

    def constant(self, name: str) -> float | None:
        """One that was declared, at the present parameters."""
        value = self._functions.constants[name]
        if not callable(value):
            return value
        dtype = self._shapes[1].dtype
        empty = torch.zeros(sum(map(math.prod, self._shapes[1].shapes.values())), dtype=dtype)
        _, theta, data = self._arguments(empty, self.theta(dtype))
        return _checked_constant(value(theta, data), name)

    def _declared(self) -> Declared:
        return Declared(
            "BilevelProblem(lower)",
            self.constant("strong_convexity"),
            gradient_lipschitz=self.constant("gradient_lipschitz"),
            hessian_lipschitz=self.constant("hessian_lipschitz"),
            cross_bound=self.constant("cross_bound"),
            cross_lipschitz=self.constant("cross_lipschitz"),
            examined=self.examine,
        )


def _numbers(value: object, name: str) -> Tensor:
    """What a function returned; ShapeError unless it is a scalar or a vector."""
    if isinstance(value, Tensor) and value.dim() <= 1 and value.numel() > 0 and value.is_floating_point():
        return value
    got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise ShapeError(f"BilevelProblem({name}): it returned {got}, expected a scalar tensor, or (problems,).")


def _checked_constant(value: object, name: str) -> float:
    call = f"BilevelProblem({name})"
    if isinstance(value, Tensor) and value.numel() == 1:
        value = float(value.detach())
    return real_number(value, call, above=0.0) if name == "strong_convexity" else real_number(value, call, least=0.0)


def _name(function: object) -> str:
    return getattr(function, "__name__", type(function).__name__)
