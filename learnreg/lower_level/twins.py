"""Twins of modules: clones of the parameters that are learned, everything else shared; and snapshots, in which every
tensor is what a function makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from learnreg.linear.examination import is_own_class
from learnreg.linear.grad_mode import usable

__all__ = ["Snapshot", "Twins"]

M = TypeVar("M", bound=nn.Module)

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class Twins:
    """Makes twins of modules and parameters, one of each: what was shared among the originals is shared among the
    twins. Parameters that require a gradient are cloned; buffers, fixed parameters and modules without anything learned
    are the originals themselves, so that a system matrix exists once. So are modules of foreign classes, with all that
    is within them: they may count their calls, or hold their parameters in ways that nobody knows.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, Any]] = {}  # beside each twin its original, lest its id be given away

    def parameter(self, p: nn.Parameter) -> nn.Parameter:
        """The clone of a parameter that requires a gradient, or that autograd does not accept; another one itself."""
        if not (p.requires_grad or p.is_inference()):
            return p
        twin: nn.Parameter = self._once(p, lambda: nn.Parameter(p.detach().clone(), p.requires_grad))
        return twin

    def module(self, module: M) -> M:
        """The twin of a module, or itself if nothing in it is learned, or if it is foreign."""
        if not is_own_class(type(module)) or not any(map(_needs_a_clone, _tensors(module))):
            return module
        twin: M = self._once(module, lambda: self._twin(module))
        return twin

    def _twin(self, module: M) -> M:
        twin = object.__new__(type(module))
        self._known[id(module)] = (module, twin)  # before what is within it, which may lead back here
        own = vars(module)
        twin.__dict__.update({k: v if k in _OF_EVERY_MODULE else self._value(v) for k, v in own.items()})
        twin._parameters = {k: None if p is None else self.parameter(p) for k, p in module._parameters.items()}
        twin._buffers = {k: t if t is None else self._tensor(t) for k, t in module._buffers.items()}
        twin._modules = {k: None if m is None else self.module(m) for k, m in module._modules.items()}
        twin.__dict__["_frozen"] = True
        return twin

    def _tensor(self, t: Tensor) -> Tensor:
        """That of a buffer."""
        found: Tensor = usable(t)
        return found

    def _value(self, value: Any) -> Any:
        if isinstance(value, nn.Parameter):
            return self.parameter(value)
        if isinstance(value, nn.Module):
            return self.module(value)
        if type(value) in (list, tuple):
            items = [self._value(v) for v in value]
            return type(value)(items) if any(a is not b for a, b in zip(items, value, strict=True)) else value
        if type(value) is dict:
            found = {k: self._value(v) for k, v in value.items()}
            return found if any(found[k] is not v for k, v in value.items()) else value
        return value

    def _once(self, original: Any, make: Callable[[], Any]) -> Any:
        if id(original) not in self._known:
            twin = make()
            self._known[id(original)] = (original, twin)
        return self._known[id(original)][1]


class Snapshot(Twins):
    """Makes twins of modules of any class, whose parameters, buffers and other tensors are what ``change`` makes of the
    original ones, once of each; differentiable where that is. Modules and tensors in attributes, lists, tuples and
    dicts are found; what a closure holds is not.
    """

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._change = change

    def parameter(self, p: Any) -> Any:
        return self._tensor(p)

    def module(self, module: M) -> M:
        twin: M = self._once(module, lambda: self._twin(module))
        return twin

    def _tensor(self, t: Tensor) -> Tensor:
        found: Tensor = self._once(t, lambda: self._change(t))
        return found

    def _value(self, value: Any) -> Any:
        return self._tensor(value) if isinstance(value, Tensor) else super()._value(value)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _needs_a_clone(t: Tensor) -> bool:
    """Whether it is learned, or made in inference mode, so that autograd does not accept it."""
    return (isinstance(t, nn.Parameter) and t.requires_grad) or t.is_inference()
