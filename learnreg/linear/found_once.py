"""What is found once about a module, and holds until its tensors or attributes change."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FindsOnce"]

_CONTENT, _SUMMED = 100_000, 10_000_000
"""Entries up to which content is told by all of them; beyond, by their sum and as many of them; then not at all."""

_APPLICATIONS = ("forward", "adjoint", "forward_into")


class FindsOnce(nn.Module):
    """A module that keeps what is dear to find about it (a norm, a symbol), and knows when it is out of date."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name != "training" and not self._is_applied():
            self.__dict__["_assignments"] = self.__dict__.get("_assignments", 0) + 1

    def _is_applied(self) -> bool:
        """Whether the assignment happens while the module is applied: what it does to itself then (it counts calls, it
        keeps memory) does not change what it is."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            if frame.f_code.co_name in _APPLICATIONS and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back
        return False

    def _known(self, what: Any, find: Callable[[], Any]) -> Any:
        """What ``find`` returned when it was asked before, as long as neither tensors nor attributes of this module and
        of those within it have changed."""
        state = self._state()
        kept = self.__dict__.get("_found")
        if kept is None or kept[0] != state:
            kept = self.__dict__["_found"] = (state, {})
        if what not in kept[1]:
            with torch.no_grad():
                kept[1][what] = find()
        return kept[1][what]

    def _state(self) -> tuple[Any, ...]:
        """Changes with the tensors of this module and of those within it, and with assignments of attributes."""
        marks: list[Any] = []
        for module in self.modules():
            own = vars(module)
            marks.append(own.get("_assignments", 0))
            tensors = (*own["_parameters"].values(), *own["_buffers"].values(), *own.values())
            marks += [_mark(t, own.get("_frozen", False)) for t in tensors if isinstance(t, Tensor)]
        return tuple(marks)


def _mark(tensor: Tensor, frozen: bool) -> tuple[Any, ...]:
    """Its version and its content, since ``p.data.mul_`` leaves no other trace, unless it belongs to a frozen problem,
    which nobody changes."""
    strided = tensor.layout is torch.strided
    memory = tensor.data_ptr() if strided else 0
    mark = (id(tensor), memory, 0 if tensor.is_inference() else tensor._version, tensor.dtype, tensor.device)
    if frozen or not strided or tensor.numel() > _SUMMED or tensor.device.type == "meta":
        return mark
    content = tensor.detach().flatten()
    if len(content) <= _CONTENT:
        return (*mark, tuple(tensor.shape), _hash(content))
    return (*mark, tuple(tensor.shape), content.sum().item(), _hash(content[:: len(content) // _CONTENT]))


def _hash(content: Tensor) -> int:
    return hash(content.cpu().contiguous().view(torch.uint8).numpy().tobytes())
