"""An operator under examination: its maps, its inputs and its tolerances."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from learnreg.errors import ConfigError, OperatorError
from learnreg.linear.arguments import LARGEST_SEED, check_type, whole_number
from learnreg.linear.norms import dense_matrix
from learnreg.linear.operator import LinearOperator

__all__ = ["AnyOperator", "Direction", "OperatorCase", "largest", "norms", "operator_case"]

_DENSE_ENTRIES = 2048**2
_KINDS = 5


@runtime_checkable
class AnyOperator(Protocol):
    """What can be examined: batched maps between spaces of fixed shapes (without the batch axis)."""

    domain_shape: tuple[int, ...]
    range_shape: tuple[int, ...]

    def forward(self, x: Tensor, /) -> Tensor: ...

    def adjoint(self, y: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Direction:
    """One of the two maps, under the name that users know it by."""

    name: str
    apply: Callable[[Tensor], Tensor]
    source: tuple[int, ...]
    target: tuple[int, ...]


@dataclass
class OperatorCase:
    """An operator, the dtype and device to examine it in, and the tolerances that belong to the dtype.

    adjoint_tolerance: largest relative gap between <Ax, y> and <x, A^T y>. rounding: relative difference that is put
    down to rounding elsewhere.
    """

    operator: AnyOperator
    dtype: torch.dtype
    device: torch.device
    adjoint_tolerance: float
    rounding: float
    generator: torch.Generator = field(repr=False)

    @property
    def forward(self) -> Direction:
        operator = self.operator
        apply = cast(Callable[[Tensor], Tensor], operator if isinstance(operator, nn.Module) else operator.forward)
        return Direction("forward", apply, tuple(operator.domain_shape), tuple(operator.range_shape))

    @property
    def adjoint(self) -> Direction:
        operator = self.operator
        return Direction("adjoint", operator.adjoint, tuple(operator.range_shape), tuple(operator.domain_shape))

    @property
    def directions(self) -> tuple[Direction, Direction]:
        return self.forward, self.adjoint

    @property
    def linear_operator(self) -> LinearOperator | None:
        """The operator, if it is one of this package's kind, with norms and bounds."""
        return self.operator if isinstance(self.operator, LinearOperator) else None

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Learnable parameters by name."""
        if not isinstance(self.operator, nn.Module):
            return {}
        return {name: p for name, p in self.operator.named_parameters() if p.requires_grad}

    def in_dtype(self, dtype: torch.dtype) -> OperatorCase:
        """The same in another dtype."""
        return replace(self, dtype=dtype)

    # ---- inputs ------------------------------------------------------------------------------------------------------

    def randn(self, batch: int, shape: tuple[int, ...]) -> Tensor:
        """Gaussian inputs."""
        drawn = torch.randn(batch, *shape, dtype=torch.float64, generator=self.generator)
        return drawn.to(self.device, self.dtype)

    def probes(self, shape: tuple[int, ...]) -> Tensor:
        """One input of each kind: gaussian, nonnegative, constant, one pixel, few pixels of either sign."""
        probes = self.randn(_KINDS, shape)
        size = math.prod(shape)
        flat = probes.view(_KINDS, size)
        flat[1] = flat[1].abs()
        flat[2] = 1.0
        one, *few = torch.randint(size, (5,), generator=self.generator).tolist()
        flat[3:] = 0.0
        flat[3, one] = 1.0
        for k, index in enumerate(few):
            flat[4, index] += (-1.0) ** k * (1.0 + k)
        return probes

    # ---- the matrix, where it is small -------------------------------------------------------------------------------

    @property
    def has_matrix(self) -> bool:
        return math.prod(self.operator.domain_shape) * math.prod(self.operator.range_shape) <= _DENSE_ENTRIES

    @cached_property
    def matrix(self) -> Tensor:
        """The matrix of forward, (range size, domain size), in float64."""
        with torch.no_grad():
            forward = self.forward
            return dense_matrix(forward.apply, forward.source, dtype=self.dtype, device=self.device).double()

    @cached_property
    def adjoint_matrix(self) -> Tensor:
        """The transpose of the matrix of adjoint, so that it should equal ``matrix``."""
        with torch.no_grad():
            adjoint = self.adjoint
            return dense_matrix(adjoint.apply, adjoint.source, dtype=self.dtype, device=self.device).double().T


def operator_case(
    operator: Any,
    dtype: torch.dtype,
    adjoint_tolerance: float | None,
    device: torch.device | str | None,
    seed: int,
) -> OperatorCase:
    """The case, or OperatorError for something that is no operator."""
    _check_interface(operator)
    check_type(dtype, torch.dtype, "check_operator(dtype)", "torch.float64 or torch.float32")
    seed = whole_number(seed, "check_operator(seed)", least=-LARGEST_SEED, most=LARGEST_SEED)
    if device is None:
        device = next((t.device for t in _tensors(operator)), torch.device("cpu"))
    double = dtype == torch.float64
    return OperatorCase(
        operator=operator,
        dtype=dtype,
        device=_device(device),
        adjoint_tolerance=(1e-10 if double else 2e-5) if adjoint_tolerance is None else adjoint_tolerance,
        rounding=1e-11 if double else 2e-5,
        generator=torch.Generator().manual_seed(seed),
    )


def _device(device: torch.device | str) -> torch.device:
    check_type(device, (str, torch.device), "check_operator(device)", "one such as 'cpu' or 'cuda'")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"check_operator(device={device!r}): expected one such as 'cpu' or 'cuda'.") from error


def _tensors(operator: Any) -> list[Tensor]:
    return [*operator.parameters(), *operator.buffers()] if isinstance(operator, nn.Module) else []


def _check_interface(operator: Any) -> None:
    kind = operator.__name__ if isinstance(operator, type) else type(operator).__name__
    if isinstance(operator, type):
        raise OperatorError(f"check_operator({kind}): got a class; pass an instance of it.", "interface")
    missing = [name for name in ("forward", "adjoint") if not callable(getattr(operator, name, None))]
    missing += [name for name in ("domain_shape", "range_shape") if not hasattr(operator, name)]
    if missing:
        raise OperatorError(
            f"check_operator: {kind} has no {', '.join(missing)}; expected a LinearOperator, or an object with "
            "forward, adjoint, domain_shape and range_shape. A pair of functions becomes one by "
            "learnreg.operators.from_callables(forward, adjoint, domain_shape, range_shape).",
            "interface",
        )
    for name in ("domain_shape", "range_shape"):
        shape = getattr(operator, name)
        if not (isinstance(shape, (tuple, list)) and shape and all(isinstance(n, int) and n > 0 for n in shape)):
            raise OperatorError(
                f"check_operator: {kind}.{name} is {shape!r}, expected a tuple of positive integers without the batch "
                "axis.",
                "interface",
            )


def norms(t: Tensor) -> Tensor:
    """2-norm per sample in float64, (batch,)."""
    return t.detach().double().flatten(1).square().sum(1).sqrt()


def largest(differences: Tensor, *scales: Tensor) -> float:
    """Largest ratio of a sample's norm to the largest of its scales; 0 for a difference of 0. An empty batch: 0."""
    if differences.shape[0] == 0:
        return 0.0
    scale = torch.stack([s if s.dim() == 1 else norms(s) for s in scales]).amax(0)
    size = norms(differences)
    return float(torch.where(size == 0, size, size / scale).max())
