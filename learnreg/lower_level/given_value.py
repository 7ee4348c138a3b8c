"""A regularizer that says its value alone, as a function of tensors of any dtype at fixed parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from learnreg.errors import ConfigError, LearnregError, ShapeError
from learnreg.lower_level.twins import Snapshot

__all__ = ["SnapshotFunction", "of_any_dtype"]


_KNOWN = "_dtype_of_numbers"
"""The attribute of snapshots that says the dtype of all their numbers: looking at them takes longer than small
networks."""


class SnapshotFunction:
    """The ``value`` of a module that nobody changes. learned: names of what requires a gradient in the original."""

    def __init__(self, module: nn.Module, learned: frozenset[str]) -> None:
        self.module, self._learned = module, learned

    @classmethod
    def of(cls, module: nn.Module) -> SnapshotFunction:
        """That of a module at its present tensors, differentiable in them."""
        learned = frozenset(name for name, p in module.named_parameters() if p.requires_grad)
        return cls(Snapshot(lambda t: t.clone()).module(module), learned)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}

    def value(self, x: Tensor) -> Tensor:
        found: Tensor = self.module.value(x)  # type: ignore[operator]
        return found

    def detached(self) -> SnapshotFunction:
        return SnapshotFunction(Snapshot(lambda t: t.detach()).module(self.module), self._learned)

    def learning(self) -> SnapshotFunction:
        chosen = self._among(self._learned)
        change = Snapshot(lambda t: t.detach().clone().requires_grad_() if id(t) in chosen else t.detach())
        return SnapshotFunction(change.module(self.module), self._learned)

    def to(self, dtype: torch.dtype) -> SnapshotFunction:
        module = _cast(self.module, dtype)
        module.__dict__[_KNOWN] = dtype
        return SnapshotFunction(module, self._learned)

    def moved(self, names: set[str], step: float) -> SnapshotFunction:
        """The same with these tensors larger by a step."""
        chosen = self._among(names)
        change = Snapshot(lambda t: t + step if id(t) in chosen else t)
        return SnapshotFunction(change.module(self.module), self._learned)

    def _among(self, names: Set[str]) -> set[int]:
        """The identities of these tensors."""
        return {id(t) for name, t in self.tensors.items() if name in names}


def of_any_dtype(value: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """``value`` of a module for images of every floating-point dtype, whatever that of its parameters, with a look at
    what it returns."""

    @wraps(value)
    def evaluate(self: Any, x: Tensor) -> Tensor:
        name = type(self).__name__
        if not isinstance(x, Tensor) or x.dim() < 2 or not x.is_floating_point():
            what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(f"{name}: got {what}, expected floating-point images (batch, *image_shape).")
        module = _cast(self, x.dtype)
        try:
            result = value(module, x)
        except LearnregError:
            raise
        except RuntimeError as error:
            if module is self and _KNOWN not in vars(self):
                raise
            raise ConfigError(
                f"{name}.value could not be evaluated in {x.dtype}, in which errors are judged: {error}. It has to "
                "find its tensors in itself (attributes, parameters, buffers), and make others in the dtype of x."
            ) from error
        if not isinstance(result, Tensor) or tuple(result.shape) != (len(x),):
            got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ShapeError(
                f"{name}.value returned {got} for images {tuple(x.shape)}, expected ({len(x)},): one number for each; "
                "sum over all axes but the first."
            )
        return result

    evaluate._of_any_dtype = True  # type: ignore[attr-defined]
    return evaluate


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module with its numbers in a dtype, itself where they are."""
    if vars(module).get(_KNOWN) == dtype or all(t.dtype == dtype for t in _numbers(module)):
        return module
    return Snapshot(lambda t: t.to(dtype) if t.is_floating_point() else t).module(module)


def _numbers(module: nn.Module) -> Iterator[Tensor]:
    for t in (*module.parameters(), *module.buffers()):
        if t.is_floating_point():
            yield t
