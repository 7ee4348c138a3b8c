"""A linear operator given by two functions: the shape every adapter brings a foreign operator into."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from learnreg.errors import LearnregError, OperatorError
from learnreg.linear.norms import NormBound
from learnreg.linear.operator import LinearOperator, linear_map
from learnreg.linear.shapes import Shape

__all__ = ["BlackBox"]

Function = Callable[[Tensor], Tensor]


class BlackBox(LinearOperator):
    """A x = forward(x) and A^T y = adjoint(y) for fixed functions of batched tensors; differentiable any number of
    times, whatever happens inside them.

    Parameters
    ----------
    forward, adjoint: from (batch, *domain_shape) to (batch, *range_shape) and back. The modules they belong to become
        submodules, so that ``.to(device)`` moves them.
    name: what error messages call it.
    hint: what they advise when a function raises.
    dtype: the dtype the functions compute in; None: that of the input. Results have the dtype of the input.
    device: where constants are computed if no module tells.
    """

    def __init__(
        self,
        forward: Function,
        adjoint: Function,
        domain_shape: Shape,
        range_shape: Shape,
        *,
        name: str = "operator",
        hint: str = "It must take (batch, *shape), the shape being domain_shape or range_shape.",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(domain_shape, range_shape)
        self.name, self.hint, self.compute_dtype, self._home = name, hint, dtype, device
        self.declared_norm: float | None = None
        self.declared_gram: float = 0.0
        self.wrapped = nn.ModuleList()
        self._functions: tuple[Any, Any] = (self._reference(forward), self._reference(adjoint))

    def forward(self, x: Tensor) -> Tensor:
        self.check_domain(x)
        return linear_map(x, self._run_forward, self._run_adjoint)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_range(y)
        return linear_map(y, self._run_adjoint, self._run_forward)

    @property
    def unit_roundoff(self) -> float:  # type: ignore[override]
        """That of float32 where the functions compute in float32 whatever comes in: certificates allow for it."""
        computed = self.dtype_for(torch.float64)
        return 0.0 if computed == torch.float64 else float(torch.finfo(computed).eps)

    def gram_lower_bound(self) -> float:
        """The declared bound; 0 without one."""
        return self.declared_gram

    def dtype_for(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype in which an input of the given one is handed to the functions."""
        if self.compute_dtype is None:
            return dtype
        inside = [t.dtype for t in (*self.wrapped.parameters(), *self.wrapped.buffers()) if t.is_floating_point()]
        return inside[0] if inside else self.compute_dtype

    def extra_repr(self) -> str:
        dtype = "" if self.compute_dtype is None else f", in {str(self.compute_dtype).removeprefix('torch.')}"
        return f"{self.name}: {super().extra_repr()}{dtype}"

    def __repr__(self) -> str:
        return super().__repr__() if len(self.wrapped) else f"{type(self).__name__}({self.extra_repr()})"

    def _find_norm(self) -> NormBound:
        if self.declared_norm is not None:
            return NormBound(self.declared_norm, "declared")
        rounding = 64.0 * torch.finfo(self.dtype_for(torch.float64)).eps  # float32 functions return a rounded matrix
        return super()._find_norm().scaled(1.0 + rounding)

    def _device(self) -> torch.device | None:
        found = super()._device()
        return torch.device(self._home) if found is None and self._home is not None else found

    # ---- calling the functions -----------------------------------------------------------------------------------

    def _run_forward(self, x: Tensor) -> Tensor:
        return self.run(0, x)

    def _run_adjoint(self, y: Tensor) -> Tensor:
        return self.run(1, y)

    def run(self, which: int, x: Tensor) -> Tensor:
        """Call the forward function (0) or the adjoint (1) outside autograd, and check what comes back."""
        shape, what = (self.range_shape, "forward") if which == 0 else (self.domain_shape, "adjoint")
        if x.shape[0] == 0:
            return x.new_zeros(0, *shape)
        given = x.detach().to(self.dtype_for(x.dtype))
        version = None if given.is_inference() else given._version
        try:
            with torch.autocast(given.device.type, enabled=False):  # which would round a fixed operator, or break it
                result = self._function(which)(given)
        except LearnregError:
            raise
        except Exception as error:
            raise OperatorError(
                f"{self.name}: its {what} raised {type(error).__name__} for an input of shape {tuple(given.shape)} and "
                f"dtype {given.dtype}: {error}. {self.hint}",
                what,
            ) from error
        if version is not None and given._version != version:
            raise OperatorError(f"{self.name}: its {what} changes its input in place; clone it first.", "purity")
        return self._checked(result, given, x, (x.shape[0], *shape), what)

    def _checked(self, result: Any, given: Tensor, x: Tensor, shape: Shape, what: str) -> Tensor:
        """The result in the dtype and on the device of x, sharing no memory with it."""
        if not isinstance(result, Tensor):
            raise OperatorError(
                f"{self.name}: its {what} returned {type(result).__name__}, expected one tensor of shape {shape}. "
                "An operator with several outputs is a stack: adapt each output and combine them with lr.vstack.",
                what,
            )
        if result.requires_grad:  # outside linear_map only, that is in a probe: the input is detached
            raise OperatorError(f"{self.name}: its {what} depends on tensors that require a gradient. {FIXED}", "fixed")
        if result.is_complex():
            raise OperatorError(f"{self.name}: its {what} returned complex numbers. {COMPLEX_HINT}", "real")
        if tuple(result.shape) != shape:
            one = " It seems to ignore the batch axis: torch.vmap adds one." if tuple(result.shape) == shape[1:] else ""
            side = "range" if what == "forward" else "domain"
            raise OperatorError(
                f"{self.name}: its {what} returned shape {tuple(result.shape)} for an input of shape "
                f"{tuple(given.shape)}, expected {shape}: correct {side}_shape or the function.{one}",
                "shape",
            )
        shared = result.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
        own: Tensor = result.detach().to(x.device, x.dtype, memory_format=torch.contiguous_format, copy=shared)
        return own.contiguous()

    # ---- modules, pickles and copies -------------------------------------------------------------------------------

    def _reference(self, function: Function) -> Any:
        """A module or a method of one by its place in ``wrapped``; anything else as it is."""
        owner: Any = function
        method = "forward"
        if inspect.ismethod(function):
            owner, method = function.__self__, function.__name__
        if not isinstance(owner, nn.Module):
            return function
        places = [k for k, module in enumerate(self.wrapped) if module is owner]
        if not places:
            self.wrapped.append(owner)
        return (places[0] if places else len(self.wrapped) - 1, method if owner is not function else "__call__")

    def _function(self, which: int) -> Function:
        function = self._functions[which]
        if isinstance(function, tuple):
            place, method = function
            return cast(Function, getattr(self.wrapped[place], method))
        return cast(Function, function)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        try:
            state["_functions"] = pickle.dumps(self._functions)
        except Exception as error:
            raise OperatorError(
                f"{self.name} cannot be pickled, because what it wraps cannot: {error}. Build it again where it is "
                "needed, or pickle learnreg.operators.assemble(A), which holds its matrix.",
                "pickle",
            ) from error
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state["_functions"] = pickle.loads(state["_functions"])
        self.__dict__.update(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> BlackBox:
        result = self.__class__.__new__(self.__class__)
        memo[id(self)] = result
        try:
            result.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        except Exception as error:
            raise OperatorError(
                f"{self.name} cannot be copied, because what it wraps cannot: {error}. Build it again, or copy "
                "learnreg.operators.assemble(A), which holds its matrix.",
                "copy",
            ) from error
        return result


FIXED = (
    "Adapters take fixed operators: call .requires_grad_(False) or detach; to learn parameters, subclass "
    "learnreg.LinearOperator and make them nn.Parameters."
)
COMPLEX_HINT = (
    "Operators are real: give complex data as two channels, real and imaginary part (learnreg.operators.as_channels); "
    "from_sigpy, from_mrinufft and from_mrpro do so for operators of these libraries."
)
