"""Curves: the course of a training run, the convergence of lower-level solves, quality over noise levels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learnreg.errors import ConfigError
from learnreg.plot.style import COLOURS, GREY, SHADE, new_figure, number_decades, styled
from learnreg.result import History, Solution

__all__ = ["convergence", "learning_curve", "noise_levels"]

Rows = Sequence[Mapping[str, Any]]

_DECADE = 10.0  # below which axes are linear: ticks of logarithmic ones would be odd numbers
_ENTRY = 0.09
"""Height of an entry of a legend over that of a panel."""

_SMOOTHED_SHARE, _FEWEST = 0.05, 20
"""The mean runs over this share of the updates; fewer are not smoothed."""


@styled
def learning_curve(run: Rows | str | Path | Any) -> Any:
    """The course of a training run over its updates: the loss of each batch with a running mean, and its certified
    interval; PSNR on held-out images or the loss of held-out samples; what audits found, the certified bound of the
    error of the hypergradients, and the range in which audits prove the true error to be.

    Parameters
    ----------
    run: what ``learnreg.train`` returned, its rows, a run folder or its metrics.jsonl.

    Returns
    -------
    A matplotlib figure; panels without data are left out.

    Raises
    ------
    ConfigError: nothing was logged, or matplotlib is missing.
    """
    rows = _rows(run)
    drawn: dict[str, Callable[[Any, Rows], None]] = {
        "loss": _draw_loss,
        "psnr": _draw_psnr,
        "validation_loss": _draw_validation,
        "relative_error_bound": _draw_audits,
    }
    present = [draw for key, draw in drawn.items() if any(_number(row.get(key)) is not None for row in rows)]
    if not present:
        raise ConfigError("plot.learning_curve: nothing was logged that could be drawn.")
    figure = new_figure(max(5.0, 3.7 * len(present)), 3.2)
    last = max((float(row["step"]) for row in rows if _number(row.get("step")) is not None), default=1.0)
    for axes, draw in zip(figure.subplots(1, len(present), squeeze=False)[0], present, strict=True):
        draw(axes, rows)
        axes.set_xlabel("update")
        axes.set_xlim(0.0, last + max(0.5, 0.02 * last))
        axes.xaxis.get_major_locator().set_params(integer=True)
        number_decades(axes)
    return figure


@styled
def convergence(solutions: Mapping[str, Solution | History], tolerance: float | None = None) -> Any:
    """Error bounds of lower-level solves, root mean squares, over the operator applications they took; the largest of a
    batch. Until a solver looks for a bound it has none, so curves begin where they have one.

    Parameters
    ----------
    solutions: by name, from ``learnreg.solve``, or their ``history``.
    tolerance: what was asked for, drawn as a line.

    Returns
    -------
    A matplotlib figure.

    Raises
    ------
    ConfigError: no solve has a finite bound, or matplotlib is missing.
    """
    histories = {name: found.history if isinstance(found, Solution) else found for name, found in solutions.items()}
    curves = {name: _finite(history) for name, history in histories.items()}
    if not any(curves.values()):
        raise ConfigError("plot.convergence: no solve has a finite error bound to draw.")
    figure = new_figure(5.0, 3.3)
    axes = figure.subplots()
    for (name, points), colour, marker in zip(curves.items(), _cycle(COLOURS), _cycle("osD^v"), strict=False):
        if points:
            axes.plot(*zip(*points, strict=True), "-" + marker, ms=3.5, color=colour, label=name)
    if tolerance is not None:
        axes.axhline(tolerance, color=GREY, ls=":", lw=1.2, label="tolerance")
    axes.set_yscale("log")
    axes.set_xlabel("operator applications")
    axes.set_ylabel("bound of the error [image units]")
    axes.set_title("convergence of lower-level solves")
    axes.legend()
    number_decades(axes)
    return figure


@styled
def noise_levels(levels: Sequence[float], psnr: Mapping[str, Sequence[float]], trained: Sequence[float] = ()) -> Any:
    """PSNR over the noise level of measurements.

    Parameters
    ----------
    levels: standard deviations of the noise, in units of images.
    psnr: by name, in dB, one number for each level.
    trained: levels, or the ends of a range of them, that the model has seen in training; shaded.

    Returns
    -------
    A matplotlib figure.

    Raises
    ------
    ConfigError: another number of values than levels, or matplotlib is missing.
    """
    if any(len(values) != len(levels) for values in psnr.values()) or not psnr:
        raise ConfigError(
            f"plot.noise_levels: got {len(levels)} levels and { ({n: len(v) for n, v in psnr.items()}) } values."
        )
    figure = new_figure(5.0, 3.3)
    axes = figure.subplots()
    if len(trained):
        low, high = min(trained), max(trained)
        axes.axvspan(low / 1.01, high * 1.01, color=SHADE, lw=0, label="seen in training")
    for (name, values), colour, marker in zip(psnr.items(), _cycle(COLOURS), _cycle("osD^v"), strict=False):
        axes.plot(levels, values, "-" + marker, ms=4, color=colour, label=name)
    axes.set_xscale("log")
    axes.set_xticks(list(levels), [f"{level:.3g}" for level in levels])
    axes.minorticks_off()
    axes.set_xlabel("noise level [image units]")
    axes.set_ylabel("PSNR [dB]")
    axes.legend()
    return figure


def _rows(run: Any) -> Rows:
    if isinstance(run, (str, Path)):
        path = Path(run) / "metrics.jsonl" if Path(run).is_dir() else Path(run)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            return [json.loads(line) for line in lines if line.endswith("}")]
        except (OSError, ValueError) as error:
            raise ConfigError(f"plot.learning_curve: {path} cannot be read ({error}).") from error
    rows = getattr(run, "rows", run)
    if not isinstance(rows, Sequence):
        raise ConfigError(f"plot.learning_curve: got a {type(run).__name__}, expected rows, a result or a run folder.")
    return rows


def _draw_loss(axes: Any, rows: Rows) -> None:
    points = _points(rows, "loss")
    steps, losses = [p[0] for p in points], [p[1] for p in points]
    axes.set_title("upper-level loss")
    lower, upper = (dict(_points(rows, key)) for key in ("loss_lower", "loss_upper"))
    common = sorted(set(lower) & set(upper))
    if common:
        low, high = [lower[x] for x in common], [upper[x] for x in common]
        axes.fill_between(common, low, high, color=COLOURS[0], alpha=0.25, lw=0, label="certified interval")
    smoothed = len(points) >= _FEWEST
    faint: dict[str, Any] = {"alpha": 0.35, "lw": 0.8, "label": "of each batch"} if smoothed else {}
    axes.plot(steps, losses, "-" if smoothed else "-o", ms=3, color=COLOURS[0], **faint)
    if smoothed:
        axes.plot(steps, _running_mean(losses), color=COLOURS[0], label="running mean")
    if min(losses) > 0 and max(losses) > _DECADE * min(losses):
        axes.set_yscale("log")
    if smoothed or common:
        _legend_above(axes)


def _running_mean(values: Sequence[float]) -> list[float]:
    """Over the values around each, fewer at the ends."""
    reach = max(1, round(_SMOOTHED_SHARE * len(values) / 2))
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    ends = ((max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values)))
    return [(sums[high] - sums[low]) / (high - low) for low, high in ends]


def _draw_psnr(axes: Any, rows: Rows) -> None:
    _draw_held_out(axes, _points(rows, "psnr"), "PSNR on held-out images [dB]", max)


def _draw_validation(axes: Any, rows: Rows) -> None:
    _draw_held_out(axes, _points(rows, "validation_loss"), "loss of held-out samples", min)


def _draw_held_out(axes: Any, points: list[tuple[float, float]], title: str, choose: Callable[..., Any]) -> None:
    axes.plot(*zip(*points, strict=True), "-o", ms=3, color=COLOURS[2])
    best = choose(points, key=lambda point: point[1])
    axes.plot(*best, "o", ms=9, mfc="none", mec=COLOURS[1], mew=1.4, label=f"best: {best[1]:.4g} at {best[0]:.0f}")
    axes.set_title(title)
    _legend_above(axes)


def _draw_audits(axes: Any, rows: Rows) -> None:
    bounds, estimates = (_points(rows, f"relative_error_{kind}") for kind in ("bound", "estimate"))
    positive = [y for _, y in (*bounds, *estimates) if y > 0]
    certified = [row for row in rows if row.get("certified") is True and _number(row.get("relative_error_bound"))]
    if certified and positive:
        least = 0.3 * min(positive)
        low = [max(least, _least_error(row)) for row in certified]
        high = [float(row["relative_error_bound"]) for row in certified]
        steps = [row["step"] for row in certified]
        axes.fill_between(steps, low, high, color=COLOURS[1], alpha=0.15, lw=0, label="true error is in here")
        if len(steps) == 1:
            axes.vlines(steps, low, high, color=COLOURS[1], alpha=0.15, lw=6)
    axes.plot(*zip(*bounds, strict=True), "-o", ms=3, color=COLOURS[1], label="bound of the error")
    if estimates:
        axes.plot(*zip(*estimates, strict=True), "--s", ms=3, color=COLOURS[0], label="error, estimated")
    if len(positive) == len(bounds) + len(estimates) and max(positive) > _DECADE * 0.3 * min(positive):
        axes.set_yscale("log")
    axes.set_title("audits: relative error of hypergradients")
    _legend_above(axes)


def _legend_above(axes: Any) -> None:
    """A legend in room of its own above the data: matplotlib's best place may lie on a shaded band."""
    share = 0.05 + _ENTRY * len(axes.get_legend_handles_labels()[1])
    scale = axes.yaxis.get_transform()
    low, high = scale.transform(np.array(axes.get_ylim()))
    top = high + (high - low) * share / (1.0 - share)
    axes.set_ylim(top=float(scale.inverted().transform(np.array([top]))[0]))
    axes.legend(loc="upper right")


def _least_error(row: Mapping[str, Any]) -> float:
    """What the relative error of an audited gradient is at least: it is at that distance from one that is known to a
    bound, both relative to the norm of the latter."""
    distance, reference = (_number(row.get(key)) for key in ("relative_error_estimate", "audit_reference_bound"))
    return 0.0 if distance is None or reference is None else max(0.0, (distance - reference) / (1.0 + reference))


def _points(rows: Rows, key: str) -> list[tuple[float, float]]:
    found = ((_number(row.get("step")), _number(row.get(key))) for row in rows)
    return [(x, y) for x, y in found if x is not None and y is not None]


def _number(value: object) -> float | None:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
    except OverflowError:  # integers of hundreds of digits
        return None
    return number if math.isfinite(number) else None


def _finite(history: History) -> list[tuple[int, float]]:
    bounds = history.error_bound.amax(1).tolist() if len(history) else []
    pairs = zip(history.operator_applications.tolist(), bounds, strict=True)
    return [(count, bound) for count, bound in pairs if math.isfinite(bound) and bound > 0]


def _cycle(values: Sequence[str]) -> list[str]:
    return list(values) * 8
