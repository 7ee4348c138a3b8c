"""Figures of a training run, as matplotlib figures without any global state."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from learnreg.models.extras import require
from learnreg.regularizers import Regularizer
from learnreg.report.comparison import Compared, Comparison

__all__ = ["comparison_figure", "filters_figure", "learning_curve_figure", "to_png"]

_COLUMNS = ("input", "tv", "learned", "clean")
_MAX_IMAGES = 4
_DETAIL = 96  # side of the enlarged centre, in pixels
_PANELS = 8  # filters beside each other
_WIDTH = 12.0  # inches


def comparison_figure(comparison: Comparison) -> Any:
    """A row per image, and below it its enlarged centre: input, total variation, learned, clean."""
    shown = comparison.images[:_MAX_IMAGES]
    column = _WIDTH / len(_COLUMNS)
    heights = [column * _aspect(view) for image in shown for view in (image.clean, _centre(image.clean))]
    figure = _figure(_WIDTH, sum(heights) + 0.55 * len(shown))
    rows = figure.subplots(len(heights), len(_COLUMNS), squeeze=False, gridspec_kw={"height_ratios": heights})
    for i, image in enumerate(shown):
        for axes, detail, what in zip(rows[2 * i], rows[2 * i + 1], _COLUMNS, strict=True):
            pixels: Tensor = getattr(image, what)
            _draw_image(axes, pixels)
            axes.set_title(_title(image, what, comparison.input_name), fontsize=10)
            _draw_image(detail, _centre(pixels))
    return figure


def filters_figure(regularizer: Regularizer) -> Any | None:
    """Groups of filters by falling weight, on one scale within a group, above the derivatives of potentials where these
    are learned; None for a regularizer without pictures."""
    shown = regularizer.pictures()
    if shown is None:
        return None
    filters, weights, smoothing = shown.filters.double(), shown.weights.double(), shown.smoothing
    norms = filters.flatten(1).norm(dim=1)
    order = torch.argsort(weights * norms, descending=True).tolist()
    members = filters.shape[1]
    across = min(max(1, _PANELS // members), len(order))
    rows = math.ceil(len(order) / across)
    figure = _figure(1.5 * across * members, 1.85 * rows + (0.0 if shown.slopes is None else 2.8))
    upper = figure
    if shown.responses is not None and shown.slopes is not None:
        upper, lower = figure.subfigures(2, 1, height_ratios=[1.85 * rows, 2.8])
        _draw_slopes(lower.subplots(1, 1), shown.responses, shown.slopes)
    panels = upper.subplots(rows, across * members, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for place, g in enumerate(order):
        row, column = divmod(place, across)
        largest = max(float(filters[g].abs().max()), 1e-30)
        for j in range(members):
            axes = panels[row, column * members + j]
            axes.imshow(filters[g, j].numpy(), cmap="gray", vmin=-largest, vmax=largest)
        title = f"l‖w‖ = {float(weights[g] * norms[g]):.2g}"
        if smoothing is not None:
            title += f"\nv/‖w‖ = {float(smoothing[g] / norms[g].clamp_min(1e-30)):.2g}"
        panels[row, column * members].set_title(title, size=8)
    return figure


def _draw_slopes(axes: Any, responses: Tensor, slopes: Tensor) -> None:
    for slope in slopes:
        axes.plot(responses.numpy(), slope.numpy(), lw=0.8, alpha=0.7)
    axes.set_title("derivatives of the potentials, over their largest value", fontsize=10)
    axes.set_xlabel("response to the filter, scaled to unit norm")
    axes.grid(alpha=0.3)


def learning_curve_figure(rows: Sequence[Mapping[str, Any]]) -> Any | None:
    """Loss (with its certified interval), held-out PSNR and relative error bound of the hypergradient over time; None
    when there are no rows. Panels without data are left out."""
    panels = {
        "loss": ("upper-level loss of the batch", "log"),
        "psnr": ("PSNR on held-out images [dB]", "linear"),
        "relative_error_bound": ("relative error bound of the hypergradient", "log"),
    }
    present = {key: how for key, how in panels.items() if any(_number(row.get(key)) is not None for row in rows)}
    if not present:
        return None
    abscissa, label = ("seconds", "seconds") if any("seconds" in row for row in rows) else ("step", "update")
    figure = _figure(4.2 * len(present), 3.2)
    all_axes = figure.subplots(1, len(present), squeeze=False)[0]
    for axes, (key, (title, scale)) in zip(all_axes, present.items(), strict=True):
        points = _points(rows, abscissa, key)
        axes.plot([p[0] for p in points], [p[1] for p in points], "-o" if len(points) < 40 else "-", ms=3, lw=1)
        if key == "loss":
            _draw_interval(axes, rows, abscissa)
        if key == "relative_error_bound":
            _draw_estimate(axes, rows, abscissa)
        if scale == "log" and all(p[1] > 0 for p in points):
            axes.set_yscale("log")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    return figure


def to_png(figure: Any, dpi: int = 130) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _figure(width: float, height: float) -> Any:
    figure = require("matplotlib.figure", "drawing figures", "matplotlib").Figure(
        figsize=(width, height), layout="constrained"
    )
    require("matplotlib.backends.backend_agg", "drawing figures", "matplotlib").FigureCanvasAgg(figure)
    return figure


def _draw_image(axes: Any, pixels: Tensor) -> None:
    shown = pixels.detach().cpu()
    shown = shown[0] if len(shown) == 1 else shown.clamp(0.0, 1.0).movedim(0, -1)
    axes.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()


def _title(image: Compared, what: str, input_name: str) -> str:
    if what == "clean":
        return f"clean: {image.name}"
    found = image.quality[what]
    label = {"input": input_name, "tv": "total variation"}.get(what, what)
    return f"{label}: {found.psnr:.2f} dB, SSIM {found.ssim:.3f}"


def _aspect(image: Tensor) -> float:
    return float(image.shape[-2] / image.shape[-1])


def _centre(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    top, left = max(0, (height - _DETAIL) // 2), max(0, (width - _DETAIL) // 2)
    return image[:, top : top + _DETAIL, left : left + _DETAIL]


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _points(rows: Sequence[Mapping[str, Any]], abscissa: str, key: str) -> list[tuple[float, float]]:
    found = ((_number(row.get(abscissa)), _number(row.get(key))) for row in rows)
    return [(x, y) for x, y in found if x is not None and y is not None]


def _draw_estimate(axes: Any, rows: Sequence[Mapping[str, Any]], abscissa: str) -> None:
    points = _points(rows, abscissa, "relative_error_estimate")
    if points and all(y > 0 for _, y in points):
        axes.plot([p[0] for p in points], [p[1] for p in points], "--", lw=1, label="estimated error")
        axes.legend(fontsize=8)


def _draw_interval(axes: Any, rows: Sequence[Mapping[str, Any]], abscissa: str) -> None:
    lower, upper = (dict(_points(rows, abscissa, key)) for key in ("loss_lower", "loss_upper"))
    common = sorted(set(lower) & set(upper))
    if common:
        low, high = [lower[x] for x in common], [upper[x] for x in common]
        axes.fill_between(common, low, high, alpha=0.3, label="certified interval")
        axes.legend(fontsize=8)
