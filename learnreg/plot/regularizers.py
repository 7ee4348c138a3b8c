"""What a regularizer has learned: its filters and its potentials."""

from __future__ import annotations

import math
from typing import Any

import torch

from learnreg.errors import ConfigError
from learnreg.linear.arguments import check_type, whole_number
from learnreg.lower_level.regularizer import Regularizer
from learnreg.lower_level.saddle_terms import Pictures
from learnreg.models.extras import require
from learnreg.plot.style import new_figure, styled

__all__ = ["filters", "pictures_of", "potentials"]

_PANELS = 8  # filters beside each other
_TINY = 1e-30


@styled
def filters(regularizer: Regularizer, most: int = 32) -> Any:
    """Groups of filters by falling weight l times norm ‖w‖, each group on a scale of its own, from minus its largest
    entry (blue) to that (red). Below: v/‖w‖, the response at which its potential turns from a square to an absolute
    value, in units of the image.

    Parameters
    ----------
    regularizer: of any family.
    most: groups that are drawn at most.

    Returns
    -------
    A matplotlib figure.

    Raises
    ------
    ConfigError: a regularizer without filters, or whose filters are those of volumes; matplotlib is missing.
    """
    shown = pictures_of(regularizer)
    if shown.filters is None or shown.weights is None:
        raise ConfigError(f"plot.filters: {type(regularizer).__name__} has no filters to draw; see plot.spectrum.")
    kernels, weights = shown.filters.double(), shown.weights.double()
    norms = kernels.flatten(1).norm(dim=1)
    order = torch.argsort(weights * norms, descending=True).tolist()[: whole_number(most, "plot.filters(most)")]
    members, (tall, wide) = kernels.shape[1], kernels.shape[-2:]
    across = min(max(1, _PANELS // members), len(order))
    rows = math.ceil(len(order) / across)
    panel = max(0.35, min(1.3, 1.3 * tall / wide))
    figure = new_figure(1.4 * across * members, (panel + 0.6) * rows)
    panels = figure.subplots(rows, across * members, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for place, g in enumerate(order):
        row, column = divmod(place, across)
        largest = max(float(kernels[g].abs().max()), _TINY)
        for j in range(members):
            axes = panels[row, column * members + j]
            axes.imshow(kernels[g, j].numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="none")
        title = f"l‖w‖ = {float(weights[g] * norms[g]):.2g}"
        if shown.smoothing is not None:
            title += f"\nv/‖w‖ = {float(shown.smoothing[g] / norms[g].clamp_min(_TINY)):.2g}"
        panels[row, column * members].set_title(title, size=8, loc="left" if members > 1 else "center")
    return figure


@styled
def potentials(regularizer: Regularizer) -> Any:
    """Potentials l f(‖w‖ t) of responses t to filters of unit norm, in units of the image, and their derivatives over
    the largest of each: what each filter adds to R, and where it turns from smoothing noise to sparing edges. Darker
    curves weigh more. Of an input-convex network: what features add to R at most, given their biases.

    Parameters
    ----------
    regularizer: of any family.

    Returns
    -------
    A matplotlib figure.

    Raises
    ------
    ConfigError: a regularizer that says its value alone; matplotlib is missing.
    """
    shown = pictures_of(regularizer)
    if shown.responses is None or shown.values is None or shown.slopes is None:
        raise ConfigError(f"plot.potentials: {type(regularizer).__name__} shows none; see plot.spectrum.")
    figure = new_figure(11.0, 3.2)
    left, right = figure.subplots(1, 2)
    sizes = shown.slopes.abs().amax(1)
    ranks = torch.argsort(torch.argsort(sizes)).double() / max(1, len(sizes) - 1) if len(sizes) > 1 else torch.ones(1)
    colours = require("matplotlib", "drawing figures", "matplotlib").colormaps["viridis_r"]
    for c in torch.argsort(sizes).tolist():
        style = {"color": colours(0.15 + 0.85 * float(ranks[c])), "lw": 1.2}
        left.plot(shown.responses.numpy(), shown.values[c].numpy(), **style)
        right.plot(shown.responses.numpy(), (shown.slopes[c] / sizes[c].clamp_min(_TINY)).numpy(), **style)
    left.set_title("potentials, weighted")
    right.set_title("derivatives, over their largest value")
    for axes in (left, right):
        axes.set_xlabel("response to the filter of unit norm [image units]")
        axes.margins(x=0.0)
        axes.locator_params(axis="x", nbins=5)  # labels of small responses are long
    return figure


def pictures_of(regularizer: Regularizer) -> Pictures:
    """What there is to draw of a regularizer, perhaps nothing."""
    check_type(regularizer, Regularizer, "plot(regularizer)", "a Regularizer")
    return regularizer.pictures() or Pictures()
