"""Objects as bytes, for the other workers of a group: tensors by their numbers, errors by what can be said of them."""

from __future__ import annotations

import io
import pickle
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from learnreg.errors import WorkerError

__all__ = ["digest", "dumps", "hollow", "loads"]


_PLAIN = (str, int, float, tuple)


def hollow(tensor: Tensor) -> Tensor:
    """Its shape and dtype, without numbers."""
    return torch.empty_like(tensor, device="meta")


def digest(value: object) -> str:
    """In short: a tensor by its numbers, others by what they say."""
    if isinstance(value, Tensor) and value.layout == torch.strided:
        return sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
    return sha256(repr(value).encode()).hexdigest()[:16]


def dumps(value: Any) -> bytes:
    """The value as bytes; tensors are copied to the CPU."""
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


def loads(data: bytes, place: torch.device) -> Any:
    """The value again; tensors that were on no CPU are at ``place``. Of the own group alone: bytes of others could run
    code."""
    return _Unpickler(data, place).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, place: torch.device) -> None:
        super().__init__(io.BytesIO(data))
        self._place = place

    def persistent_load(self, pid: Any) -> torch.device:
        return self._place


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.is_meta:
                return _empty, (tuple(value.shape), value.dtype)
            numbers = value.detach().cpu().contiguous().numpy().tobytes()
            return _tensor, (numbers, tuple(value.shape), value.dtype, None if value.is_cpu else _Place())
        if isinstance(value, BaseException):
            return _error, _parts(value)
        return NotImplemented

    def persistent_id(self, value: Any) -> Any:
        return "place" if isinstance(value, _Place) else None


class _Place:
    """Where the reader has its parameters."""


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _tensor(numbers: bytes, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None) -> Tensor:
    if not numbers:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.frombuffer(bytearray(numbers), dtype=dtype).reshape(shape).to(device or "cpu")


def _parts(error: BaseException) -> tuple[Any, ...]:
    """Class, text and plain attributes; a class that others cannot import becomes a WorkerError."""
    kind, text = type(error), str(error)
    try:
        pickle.dumps(kind)
    except (pickle.PicklingError, AttributeError, TypeError):
        kind, text = WorkerError, f"{kind.__name__}: {text}"
    plain = {name: value if isinstance(value, _PLAIN) else None for name, value in vars(error).items()}
    plain.pop("__notes__", None)
    return kind, text, plain, list(getattr(error, "__notes__", ()))


def _error(kind: type[BaseException], text: str, plain: dict[str, Any], notes: list[str]) -> BaseException:
    error = kind.__new__(kind, text)
    error.args = (text,)
    vars(error).update(plain)
    for note in notes:
        error.add_note(note)
    return error
