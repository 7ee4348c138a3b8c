"""Reconstructions side by side, with maps of their errors and the place where they differ most enlarged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from learnreg.errors import ConfigError, ShapeError
from learnreg.linear.arguments import whole_number
from learnreg.models.extras import require
from learnreg.plot.style import COLOURS, new_figure, styled

__all__ = ["comparison", "most_informative"]

_COLUMN = 2.8  # inches
_QUANTILE = 0.995  # of errors, at the end of their scale
_BOX = COLOURS[5]


@styled
def comparison(
    images: Mapping[str, Tensor],
    clean: Tensor | None = None,
    *,
    measured: str | None = None,
    zoom: int | None = None,
    window: tuple[float, float] = (0.0, 1.0),
) -> Any:
    """Images side by side; below them their errors, on one scale, and the square where they differ most, enlarged.

    Parameters
    ----------
    images: by the titles of their columns, each (channels, height, width) with 1 or 3 channels, or (height, width).
    clean: the ground truth, in a last column of its own. Errors are differences from it, of three channels the root
        mean square. Without: no errors, and the zoom shows where images differ from each other.
    measured: the key of the image that reconstructions are made from: where it differs says nothing, and the scale of
        errors, at which 99.5 % of those of the others end, is not made for it.
    zoom: side of the square in pixels; None: a quarter of the shorter side.
    window: the values shown as black and white.

    Returns
    -------
    A matplotlib figure.

    Raises
    ------
    ShapeError: images of different or other shapes. ConfigError: no images, or matplotlib is missing.
    """
    shown, truth = _checked(images, clean, measured)
    height, width = next(iter(shown.values())).shape[-2:]
    side = max(1, min(height, width, max(16, min(height, width) // 4) if zoom is None else whole_number(zoom, "zoom")))
    top, left = most_informative(_compared(shown, truth, measured), side)
    crop = (..., slice(top, top + side), slice(left, left + side))
    columns = shown if truth is None else {**shown, "clean": truth}
    rows = [height / width, 1.0] if truth is None else [height / width, height / width, 1.0]
    figure = new_figure(_COLUMN * len(columns), _COLUMN * sum(rows) + 0.35)
    grid = figure.subplots(len(rows), len(columns), squeeze=False, gridspec_kw={"height_ratios": rows})
    for j, (title, x) in enumerate(columns.items()):
        _show(grid[0, j], x, window)
        grid[0, j].set_title(title)
        _draw_box(grid[0, j], top, left, side)
        _show(grid[-1, j], x[crop], window)
        _frame(grid[-1, j])
    if truth is not None:
        _draw_errors(figure, grid[1], {name: x - truth for name, x in shown.items()}, measured)
    return figure


def most_informative(images: list[Tensor], side: int) -> tuple[int, int]:
    """Top and left of the square, ``side`` pixels wide, where images (channels, height, width) differ most from their
    mean, in the mean square.

    Parameters
    ----------
    images: of one shape.
    """
    stack = torch.stack([x.detach().double().cpu() for x in images])
    spread = (stack - stack.mean(0)).square().sum((0, 1))
    sums = F.avg_pool2d(spread[None, None], side, 1)[0, 0]
    top, left = divmod(int(sums.argmax()), sums.shape[1])
    return top, left


def _compared(shown: Mapping[str, Tensor], truth: Tensor | None, measured: str | None) -> list[Tensor]:
    """What the zoom is chosen by: the reconstructions, or a single one and the truth."""
    found = [x for name, x in shown.items() if name != measured] or list(shown.values())
    return found if len(found) > 1 or truth is None else [*found, truth]


def _checked(
    images: Mapping[str, Tensor], clean: Tensor | None, measured: str | None
) -> tuple[dict[str, Tensor], Tensor | None]:
    if not images or (measured is not None and measured not in images):
        raise ConfigError(
            f"plot.comparison: got the images {list(images)} and measured={measured!r}, expected it there."
        )
    shown = {name: _image(x, name) for name, x in images.items()}
    truth = None if clean is None else _image(clean, "clean")
    shapes = {name: tuple(x.shape) for name, x in (shown if truth is None else {**shown, "clean": truth}).items()}
    if len(set(shapes.values())) > 1:
        raise ShapeError(f"plot.comparison: images of different shapes, {shapes}; expected one.")
    return shown, truth


def _image(x: Tensor, name: str) -> Tensor:
    x = torch.as_tensor(x).detach().double().cpu()
    x = x[None] if x.dim() == 2 else x
    if x.dim() != 3 or x.shape[0] not in (1, 3):
        raise ShapeError(f"plot.comparison: {name} has shape {tuple(x.shape)}, expected (1 or 3, height, width).")
    return x


def _show(axes: Any, x: Tensor, window: tuple[float, float]) -> None:
    low, high = window
    pixels = x[0] if len(x) == 1 else ((x - low) / (high - low)).clamp(0.0, 1.0).movedim(0, -1)
    axes.imshow(pixels.numpy(), cmap="gray", vmin=low, vmax=high, interpolation="none")
    axes.set_axis_off()


def _draw_box(axes: Any, top: int, left: int, side: int) -> None:
    patches = require("matplotlib.patches", "drawing figures", "matplotlib")
    axes.add_patch(patches.Rectangle((left - 0.5, top - 0.5), side, side, fill=False, ec=_BOX, lw=1.6))


def _frame(axes: Any) -> None:
    """The colour of the box around the enlarged square."""
    axes.set_axis_on()
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, edgecolor=_BOX, linewidth=1.6)


def _draw_errors(figure: Any, row: Any, errors: Mapping[str, Tensor], measured: str | None) -> None:
    judged = [e for name, e in errors.items() if name != measured] or list(errors.values())
    signed = len(judged[0]) == 1
    maps = {name: e[0] if signed else e.square().mean(0).sqrt() for name, e in errors.items()}
    sizes = torch.cat([(e[0] if signed else e.square().mean(0).sqrt()).abs().flatten() for e in judged])
    end = float(sizes.sort().values[math.ceil(_QUANTILE * len(sizes)) - 1]) or 1e-30
    style = {"cmap": "RdBu_r", "vmin": -end, "vmax": end} if signed else {"cmap": "magma", "vmin": 0.0, "vmax": end}
    for axes, values in zip(row, maps.values(), strict=False):
        drawn = axes.imshow(values.numpy(), interpolation="none", **style)
        axes.set_axis_off()
    last = row[len(maps)]
    last.set_axis_off()
    inner = last.inset_axes((0.02, 0.05, 0.07, 0.9))
    label = "image − clean" if signed else "error (rms)"
    figure.colorbar(drawn, cax=inner, extend="both" if signed else "max", label=label)
