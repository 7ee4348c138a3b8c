"""Numbers of pixels that are no image: weights, errors, slices on a scale of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from learnreg.errors import ConfigError, ShapeError
from learnreg.linear.arguments import whole_number
from learnreg.models.extras import require
from learnreg.plot.style import new_figure, styled

__all__ = ["maps"]

_COLUMN = 2.6  # inches
_TINY = 1e-30


@styled
def maps(
    values: Mapping[str, Tensor],
    window: tuple[float, float] | None = None,
    *,
    signed: bool = False,
    logarithmic: bool = False,
    columns: int | None = None,
    label: str = "",
) -> Any:
    """Maps of weights, errors or other numbers of pixels side by side, with their scales.

    Parameters
    ----------
    values: by their titles, each (height, width) or (1, height, width).
    window: the ends of one scale for all; None: each has a scale of its own, from its least to its largest value.
    signed: zero is white, and the ends of the scale are opposite numbers.
    logarithmic: the scale of positive numbers.
    columns: maps beside each other; None: all.
    label: of the scales.

    Returns
    -------
    A matplotlib figure.

    Raises
    ------
    ShapeError: a map of another shape. ConfigError: no maps, numbers <= 0 on a logarithmic scale, a scale that is
    signed and logarithmic, or matplotlib is missing.

    Examples
    --------
    >>> figure = lr.plot.maps({"weights": torch.rand(8, 8)}, window=(0.0, 1.0))
    """
    if not values or (signed and logarithmic):
        raise ConfigError(
            f"plot.maps: got the maps {list(values)}, {signed=}, {logarithmic=}; expected some, on one scale."
        )
    shown = {title: _map(x, title, logarithmic) for title, x in values.items()}
    across = len(shown) if columns is None else min(len(shown), whole_number(columns, "plot.maps(columns)"))
    rows = math.ceil(len(shown) / across)
    tallest = max(x.shape[0] / x.shape[1] for x in shown.values())
    figure = new_figure((_COLUMN + 0.5) * across, (_COLUMN * min(max(tallest, 0.25), 2.0) + 0.35) * rows)
    panels = figure.subplots(rows, across, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, (title, x) in zip(panels.flat, shown.items(), strict=False):
        drawn = axes.imshow(x.numpy(), interpolation="none", **_scale(x, window, signed, logarithmic))
        axes.set_title(title)
        if window is None:
            figure.colorbar(drawn, ax=axes, shrink=0.85, label=label)
    if window is not None:
        figure.colorbar(drawn, ax=panels, shrink=0.85, label=label)
    return figure


def _map(x: Tensor, title: str, logarithmic: bool) -> Tensor:
    x = torch.as_tensor(x).detach().double().cpu()
    x = x[0] if x.dim() == 3 and len(x) == 1 else x
    if x.dim() != 2:
        raise ShapeError(
            f"plot.maps: {title} has shape {tuple(x.shape)}, expected (height, width) or (1, height, width)."
        )
    if logarithmic and not bool((x > 0).all()):
        raise ConfigError(f"plot.maps: {title} has numbers <= 0, which a logarithmic scale cannot show.")
    return x


def _scale(x: Tensor, window: tuple[float, float] | None, signed: bool, logarithmic: bool) -> dict[str, Any]:
    low, high = (float(x.min()), float(x.max())) if window is None else window
    if signed:
        end = max(abs(low), abs(high), _TINY)
        return {"cmap": "RdBu_r", "vmin": -end, "vmax": end}
    if logarithmic:
        norm = require("matplotlib.colors", "drawing figures", "matplotlib").LogNorm(low, high)
        return {"cmap": "viridis", "norm": norm}
    return {"cmap": "viridis", "vmin": low, "vmax": high}
