"""Kernels of filter banks: valid correlation and its transpose, differentiable any number of times.

On a CPU, conv2d and above all conv_transpose2d are far from what the matrix product of the same library reaches, and a
fresh tensor for every result costs more in page faults than its arithmetic. The fast kernels are matrix products, one
per block (a block is small enough for the cache) or one per row of the result, write into memory the caller provides,
and keep their scratch space between calls. Which kernel is the fastest is measured, once per shape; other devices, half
precision and deterministic mode use the reference, conv2d and conv_transpose2d
(``torch.use_deterministic_algorithms(True)`` also keeps results from depending on a measurement).

"Correlation" is that of torch's conv2d, without flipping the filters.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from learnreg.linear.grad_mode import full_precision

__all__ = [
    "BankMaps",
    "adopt_kernels",
    "agree_on_kernels",
    "chosen_kernels",
    "correlate",
    "correlate_adjoint",
    "differentiates",
    "eager",
    "filter_gradient",
]

Kernel = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(input, filters, out): the result, in the memory of ``out`` where that is given."""

_BLOCK_BYTES = 2 * 1024**2
_TAP_BYTES = 4 * 1024**2
_ROW_BYTES = 8 * 1024**2
_MEASURED_ROWS = 64
_MEASURE_REPEATS = 3
_SHAPE_NUMBERS = 5  # by which choices are kept: filters, their sides, rows, columns


# ---- public ----------------------------------------------------------------------------------------------------------


def correlate(x: Tensor, filters: Tensor, out: Tensor | None = None) -> Tensor:
    """Valid correlation of (batch, 1, H, W) with (n, k, l): (batch, n, H-k+1, W-l+1).

    ``out``: memory for the result, contiguous, for callers that do not differentiate.
    """
    if out is None and differentiates(x, filters):
        return _MAPS.recorded(x, filters, transposed=False)
    (_, k, l), (rows, cols) = filters.shape, x.shape[-2:]
    return _choose("correlate", _FORWARD, x, filters, rows - k + 1, cols - l + 1)(x, filters, out)


def correlate_adjoint(y: Tensor, filters: Tensor, out: Tensor | None = None) -> Tensor:
    """Transpose of :func:`correlate` in the image: (batch, n, h, w) to (batch, 1, h+k-1, w+l-1)."""
    if out is None and differentiates(y, filters):
        return _MAPS.recorded(y, filters, transposed=True)
    kernel = _choose("adjoint", _ADJOINT, y, filters, *y.shape[-2:])
    return kernel(y if y.is_contiguous() else y.contiguous(), filters, out)


def filter_gradient(x: Tensor, y: Tensor, size: tuple[int, ...]) -> Tensor:
    """∂_w <w * x, y>: the correlation of the image (batch, 1, H, W) with the responses (batch, n, h, w): (n, k, l)."""
    batch, n, rows, cols = y.shape
    if x.device.type != "cpu" or differentiates(x, y):
        windows = x[:, 0].unfold(-2, rows, 1).unfold(-2, cols, 1)
        return torch.einsum("bklrc,bnrc->nkl", windows, y).reshape(n, *size)
    k, l = size
    gradient = y.new_zeros(n, k * l)
    windows = _scratch(k * l * rows * cols, y).view(k, l, rows, cols)
    for i in range(batch):  # the windows of one sample at a time stay in the cache
        windows.copy_(x[i, 0].unfold(-2, rows, 1).unfold(-2, cols, 1))
        gradient.addmm_(y[i].reshape(n, rows * cols), windows.view(k * l, rows * cols).T)
    return gradient.view(n, k, l)


def chosen_kernels() -> dict[str, str]:
    """What was measured to be the fastest, by "kind filters rows x columns dtype threads"."""
    return {" ".join(map(str, key)): name for key, name in _choices.copy().items()}


def adopt_kernels(chosen: Mapping[str, str]) -> None:
    """Use what ``chosen_kernels`` returned, in another process perhaps, from now on, instead of what was measured here;
    names and shapes that are unknown are left out."""
    for key, name in chosen.items():
        kind, *numbers = key.split()
        if name in _KERNELS.get(kind, {}) and len(numbers) == _SHAPE_NUMBERS + 2:
            *shape, dtype, threads = numbers
            if all(number.isdecimal() for number in (*shape, threads)):
                _choices[kind, *map(int, shape), dtype, int(threads)] = name


def agree_on_kernels(agree: Callable[[str, str], str] | None) -> None:
    """Ask for each shape that is measured from now on what several processes agree on: ``agree(key, name)``, with what
    was the fastest here, returns the name for all of them. None: this process decides alone."""
    _agreements[:] = [] if agree is None else [agree]


def differentiates(*tensors: Tensor) -> bool:
    """Whether autograd has to record what is made of these."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def eager(like: Tensor) -> bool:
    """Whether the fast kernels serve this tensor."""
    plain = like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64)
    return plain and not torch.are_deterministic_algorithms_enabled() and like.numel() > 0


class BankMaps(NamedTuple):
    """What a bank of filters makes of images, its transpose in the image, and ∂_w <w * x, y> for filters of given
    sides."""

    correlate: Callable[[Tensor, Tensor], Tensor]
    adjoint: Callable[[Tensor, Tensor], Tensor]
    filter_gradient: Callable[[Tensor, Tensor, tuple[int, ...]], Tensor]

    def recorded(self, v: Tensor, filters: Tensor, transposed: bool) -> Tensor:
        """w * x, or the transpose at y, for autograd."""
        return cast(Tensor, _Recorded.apply(v, filters, self, transposed))  # type: ignore[no-untyped-call]


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, filters: Tensor, maps: BankMaps, transposed: bool) -> Tensor:
        ctx.save_for_backward(v, filters)
        ctx.maps, ctx.transposed = maps, transposed
        return (maps.adjoint if transposed else maps.correlate)(v, filters)  # nothing is recorded in here

    @staticmethod
    @full_precision
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        v, filters = ctx.saved_tensors
        maps, w = ctx.maps, grad[0]
        back, x, y = (maps.correlate, w, v) if ctx.transposed else (maps.adjoint, v, w)
        grad_v = back(w, filters) if ctx.needs_input_grad[0] else None
        grad_filters = maps.filter_gradient(x, y, filters.shape[2 - x.dim() :]) if ctx.needs_input_grad[1] else None
        return grad_v, grad_filters, None, None


_MAPS = BankMaps(correlate, correlate_adjoint, filter_gradient)


# ---- kernels ---------------------------------------------------------------------------------------------------------


def _responses(x: Tensor, filters: Tensor) -> Tensor:
    """Memory for the responses to images."""
    (n, k, l), (batch, _, rows, cols) = filters.shape, x.shape
    return x.new_empty(batch, n, rows - k + 1, cols - l + 1)


def _image(y: Tensor, filters: Tensor) -> Tensor:
    """Memory for what the transpose makes of responses."""
    (_, k, l), (batch, _, rows, cols) = filters.shape, y.shape
    return y.new_empty(batch, 1, rows + k - 1, cols + l - 1)


def _conv2d(x: Tensor, filters: Tensor, out: Tensor | None) -> Tensor:
    """The reference, block by block so that its temporary result stays in the cache."""
    weight, k = filters[:, None], filters.shape[1]
    if x.device.type != "cpu" or weight.shape[0] * x.numel() * x.element_size() <= _BLOCK_BYTES:
        found = F.conv2d(x, weight)
        return found if out is None else out.copy_(found)
    out = _responses(x, filters) if out is None else out
    rows, block = out.shape[2], _block_rows(out, out.shape[1])
    samples = max(1, block // rows)  # at a time
    for i in range(0, x.shape[0], samples):
        for first in range(0, rows, block):
            last, part = min(first + block, rows), slice(i, i + samples)
            out[part, :, first:last] = F.conv2d(x[part, :, first : last + k - 1], weight)
    return out


def _windows_product(x: Tensor, filters: Tensor, out: Tensor | None) -> Tensor:
    """Filters (n, kl) times the matrix of windows (kl, pixels), block by block."""
    out = _responses(x, filters) if out is None else out
    (n, k, l), (batch, _, rows, cols) = filters.shape, out.shape
    matrix, row, col = filters.reshape(n, k * l), x.stride(-2), x.stride(-1)
    block = min(rows, _block_rows(out, k * l))
    scratch = _scratch(k * l * block * cols, out)
    flat = out.view(batch, n, rows * cols)
    for i in range(batch):
        for first in range(0, rows, block):
            height = min(block, rows - first)
            windows = scratch[: k * l * height * cols]
            shifted = x[i, 0].as_strided(
                (k, l, height, cols), (row, col, row, col), x[i, 0].storage_offset() + first * row
            )
            windows.view(k, l, height, cols).copy_(shifted)
            columns = slice(first * cols, (first + height) * cols)
            torch.mm(matrix, windows.view(k * l, height * cols), out=flat[i, :, columns])
    return out


def _rows_of_windows(x: Tensor, filters: Tensor, out: Tensor | None) -> Tensor:
    """Filters (n, kl) times l shifted copies of k rows (kl, columns) for each row of responses: many times fewer copies
    than windows have pixels."""
    out = _responses(x, filters) if out is None else out
    (n, k, l), (batch, _, rows, cols) = filters.shape, out.shape
    matrix, block = filters.reshape(n, k * l), _rows_at_once(out, l * cols)
    scratch = _scratch((block + k - 1) * l * cols, out)
    for i in range(batch):
        for first in range(0, rows, block):
            height = min(block, rows - first)
            count = height + k - 1
            shifted = scratch[: count * l * cols].view(count, l, cols)
            for b in range(l):
                shifted[:, b].copy_(x[i, 0, first : first + count, b : b + cols])
            flat = shifted.view(count * l, cols)
            for row in range(height):
                torch.mm(matrix, flat[row * l : (row + k) * l], out=out[i, :, first + row])
    return out


def _conv_transpose2d(y: Tensor, filters: Tensor, out: Tensor | None) -> Tensor:
    found = F.conv_transpose2d(y, filters[:, None])
    return found if out is None else out.copy_(found)


def _taps_product(y: Tensor, filters: Tensor, out: Tensor | None) -> Tensor:
    """Filters (kl, n) times the responses (n, pixels), then kl shifted additions."""
    out = _image(y, filters) if out is None else out
    (n, k, l), (batch, _, rows, cols) = filters.shape, y.shape
    matrix = filters.reshape(n, k * l).T.expand(batch, k * l, n)
    per_row = batch * k * l * cols * y.element_size()
    block = max(1, min(rows, _TAP_BYTES // per_row))
    scratch = _scratch(batch * k * l * block * cols, y)
    flat = y.view(batch, n, rows * cols)
    out.zero_()
    for first in range(0, rows, block):
        height = min(block, rows - first)
        columns = slice(first * cols, (first + height) * cols)
        taps = scratch[: batch * k * l * height * cols].view(batch, k * l, height * cols)
        torch.bmm(matrix, flat[:, :, columns], out=taps)
        shifts = taps.view(batch, k * l, height, cols).unbind(1)
        for s, tap in enumerate(shifts):
            i, j = first + s // l, s % l
            out[:, 0, i : i + height, j : j + cols].add_(tap)
    return out


def _rows_product(y: Tensor, filters: Tensor, out: Tensor | None) -> Tensor:
    """Filters (l, kn) times k rows of responses (kn, columns of all images) for each row of the images, then l shifted
    additions: k times fewer than there are taps."""
    out = _image(y, filters) if out is None else out
    (n, k, l), (batch, _, rows, cols) = filters.shape, y.shape
    width = batch * cols
    block = _rows_at_once(y, n * width)
    matrix = filters.flip(1).permute(2, 1, 0).reshape(l, k * n)
    scratch = _scratch(block * n * width + (block + k - 1) * l * width, y)
    out.zero_()
    for first in range(0, rows, block):
        height = min(block, rows - first)
        flat = scratch[: height * n * width].view(height * n, width)
        flat.view(height, n, batch, cols).copy_(y[:, :, first : first + height].permute(2, 1, 0, 3))
        count = height + k - 1
        taps = scratch[block * n * width :][: count * l * width].view(count, l, width)
        for row in range(count):
            low, high, ahead = max(0, row - k + 1), min(height, row + 1), k - 1 - row  # responses that reach this row
            torch.mm(matrix[:, (ahead + low) * n : (ahead + high) * n], flat[low * n : high * n], out=taps[row])
        shifts = taps.view(count, l, batch, cols).permute(1, 2, 0, 3)
        for b in range(l):
            out[:, 0, first : first + count, b : b + cols].add_(shifts[b])
    return out


_FORWARD: dict[str, Kernel] = {
    "conv2d": _conv2d,
    "windows-product": _windows_product,
    "rows-of-windows": _rows_of_windows,
}
_ADJOINT: dict[str, Kernel] = {
    "conv_transpose2d": _conv_transpose2d,
    "taps-product": _taps_product,
    "rows-product": _rows_product,
}
"""The reference comes first."""
_KERNELS = {"correlate": _FORWARD, "adjoint": _ADJOINT}


def _block_rows(out: Tensor, channels: int) -> int:
    return max(1, _BLOCK_BYTES // (channels * out.shape[-1] * out.element_size()))


def _rows_at_once(like: Tensor, row: int) -> int:
    """Of ``row`` numbers each, for all of whose rows together there is scratch space."""
    return max(1, min(like.shape[-2], _ROW_BYTES // (row * like.element_size())))


_memory = threading.local()


def _scratch(count: int, like: Tensor) -> Tensor:
    """``count`` numbers of scratch space of this thread, kept between calls."""
    kept: dict[torch.dtype, Tensor] = _memory.__dict__.setdefault("kept", {})
    if like.dtype not in kept or kept[like.dtype].numel() < count:
        with torch.inference_mode(False):
            kept[like.dtype] = torch.empty(count, dtype=like.dtype)
    return kept[like.dtype][:count]


# ---- choice ----------------------------------------------------------------------------------------------------------

_choices: dict[tuple[str | int, ...], str] = {}
_agreements: list[Callable[[str, str], str]] = []  # one at most


def _choose(kind: str, kernels: dict[str, Kernel], like: Tensor, filters: Tensor, rows: int, cols: int) -> Kernel:
    """The fastest kernel for responses of this shape, measured on a part of it when it is seen for the first time."""
    reference = next(iter(kernels))
    if not eager(like) or filters.numel() == 0:
        return kernels[reference]
    n, k, l = filters.shape
    key = (kind, n, k, l, min(rows, _MEASURED_ROWS), cols, str(like.dtype), torch.get_num_threads())
    if key not in _choices:
        name = _fastest(kernels, n, k, l, min(rows, _MEASURED_ROWS), cols, like.dtype)
        for agree in _agreements:
            name = agree(" ".join(map(str, key)), name)
        _choices[key] = name
    return kernels[_choices[key]]


@torch.no_grad()
def _fastest(kernels: dict[str, Kernel], n: int, k: int, l: int, rows: int, cols: int, dtype: torch.dtype) -> str:
    image = torch.ones(1, 1, rows + k - 1, cols + l - 1, dtype=dtype)
    responses = torch.ones(1, n, rows, cols, dtype=dtype)
    filters = torch.ones(n, k, l, dtype=dtype)
    source, out = (image, responses) if kernels is _FORWARD else (responses, image)
    seconds = dict.fromkeys(kernels, math.inf)
    for _ in range(_MEASURE_REPEATS):
        for name, kernel in kernels.items():
            began = time.perf_counter()
            kernel(source, filters, out)
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    return min(seconds, key=lambda name: seconds[name])
