"""The figure of ``learnreg accuracy``, certified bounds beside true errors, and the files it is written to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learnreg.accuracy.report import AccuracyReport, AccuracyRow
from learnreg.errors import DataError
from learnreg.models.extras import require
from learnreg.models.tensor_files import dumps, write_atomically
from learnreg.plot.style import COLOURS, GREY, SHADE, figure_file, new_figure, styled

__all__ = ["accuracy_figure", "write_accuracy"]

_COLOURS = {"published": COLOURS[1], "sharp": COLOURS[0]}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_LONGEST_TITLE = 40


@styled
def accuracy_figure(report: AccuracyReport) -> Any:
    """On the left a panel per problem: error and bound of each hypergradient over the operator applications it took. On
    the right: bound over error of judged gradients, the region where a bound would be violated shaded.

    Raises
    ------
    ConfigError: matplotlib is not installed.
    """
    return _draw(report)


def write_accuracy(report: AccuracyReport, folder: Path) -> list[Path]:
    """Write accuracy.json, accuracy.png and accuracy.pdf into a folder; returns their paths.

    Raises
    ------
    ConfigError: matplotlib is not installed; accuracy.json is written all the same. DataError: the system refuses.
    """
    paths = [folder / f"accuracy.{suffix}" for suffix in ("json", "png", "pdf")]
    write_atomically(paths[0], (dumps(report.as_dict()) + "\n").encode(), DataError)
    figure = accuracy_figure(report)
    for path in paths[1:]:
        write_atomically(path, figure_file(figure, path.suffix[1:]), DataError)
    return paths


def _draw(report: AccuracyReport) -> Any:
    names = list(dict.fromkeys(row.problem for row in report.rows))
    columns = math.ceil(math.sqrt(len(names)))
    lines = math.ceil(len(names) / columns)
    width = max(5.6, 3.2 * columns)
    figure = new_figure(5.2 + width, 5.6 if lines < 3 else 2.6 * lines)
    left, right = figure.subfigures(1, 2, width_ratios=(width, 5.2), wspace=0.03)
    panels = left.subplots(lines, columns, squeeze=False, sharey=True)
    methods = list(dict.fromkeys(row.method for row in report.rows))
    for panel, name in zip(panels.flat, names, strict=False):
        _draw_problem(panel, name, [row for row in report.rows if row.problem == name], methods)
    for panel in list(panels.flat)[len(names) :]:
        panel.set_visible(False)
    for panel in panels[-1]:
        panel.set_xlabel("operator applications")
    left.supylabel("relative error of the hypergradient", fontsize=10)
    left.suptitle(f"Hypergradients at the tolerances {_tolerances(report)}", fontsize=11)
    _left_legend(left, methods)
    _draw_judged(right, report)
    right.suptitle("Gradients at perturbed points, judged by certify", fontsize=11)
    return figure


def _draw_problem(panel: Any, name: str, rows: Sequence[AccuracyRow], methods: Sequence[str]) -> None:
    for row in rows:
        marker, colour = _MARKERS[methods.index(row.method) % len(_MARKERS)], _COLOURS[row.certificate]
        error, bound, cost = max(row.relative_error, 1e-17), row.relative_bound, row.operator_applications
        if math.isfinite(bound):
            style = "-" if row.certified else ":"
            panel.plot([cost, cost], [error, bound], style, color=colour, lw=0.7, alpha=0.55, zorder=2)
            panel.plot(cost, bound, marker, ms=5, mfc="white", mec=colour, mew=1.1, zorder=3)
        panel.plot(cost, error, marker, ms=4.5, color=colour, mec="white", mew=0.4, zorder=4)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_title(name if len(name) <= _LONGEST_TITLE else f"…{name[1 - _LONGEST_TITLE :]}")
    _plain_ticks(panel, [row.operator_applications for row in rows])


def _plain_ticks(panel: Any, costs: Sequence[int]) -> None:
    """Plain numbers: applications hardly span a decade."""
    ticker = require("matplotlib.ticker", "drawing figures", "matplotlib")
    low, high = min(costs) / 1.25, max(costs) * 1.25
    decades = math.log10(high / low)
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if decades < 0.9 else (1.0, 2.0, 5.0) if decades < 2 else (1.0,)
    panel.set_xlim(low, high)
    panel.xaxis.set_major_locator(ticker.LogLocator(subs=subs))
    panel.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    panel.xaxis.set_minor_locator(ticker.NullLocator())
    panel.yaxis.set_major_locator(ticker.LogLocator(numticks=8))
    panel.yaxis.set_minor_locator(ticker.NullLocator())


def _left_legend(figure: Any, methods: Sequence[str]) -> None:
    line = require("matplotlib.lines", "drawing figures", "matplotlib").Line2D
    grey = {"ls": "", "ms": 5.5, "color": GREY}
    handles = [
        *(line([], [], marker=_MARKERS[i % len(_MARKERS)], label=name, **grey) for i, name in enumerate(methods)),
        *(line([], [], color=colour, lw=3, label=f"{kind} certificate") for kind, colour in _COLOURS.items()),
        line([], [], marker="o", label="true error", **grey),
        line([], [], marker="o", mfc="white", mew=1.1, label="its bound", **grey),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, columnspacing=2.5)


def _draw_judged(figure: Any, report: AccuracyReport) -> None:
    panel = figure.subplots(1, 1)
    panel.set_xlabel("true relative error of the gradient")
    panel.set_ylabel("bound of that error by certify")
    rows = [
        row for row in report.plain if row.certified and row.relative_error > 0 and math.isfinite(row.relative_bound)
    ]
    if not rows:
        panel.text(0.5, 0.5, "nothing certified", transform=panel.transAxes, ha="center")
        return
    low = min(min(row.relative_error, row.relative_bound) for row in rows) / 3
    high = max(row.relative_bound for row in rows) * 5
    right = max(row.relative_error for row in rows) * 3
    panel.fill_between([low, right], [low / 100] * 2, [low, right], color=SHADE, lw=0, zorder=1)
    panel.plot([low, right], [low, right], color=GREY, lw=1, zorder=2)
    for kind, colour in _COLOURS.items():
        own = [row for row in rows if row.certificate == kind]
        found = report.effectivities(kind, plain=True)
        figures = f"bound/error {_short(found['median'])} (median), {_short(found['percentile_95'])} (95 %)"
        label = f"{kind}: {figures if own else 'nothing certified'}"
        x, y = [row.relative_error for row in own], [row.relative_bound for row in own]
        panel.plot(x, y, "o", ms=6, mfc=colour, mec="white", mew=0.6, alpha=0.85, zorder=3, label=label)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(low, right)
    panel.set_ylim(low, high)
    panel.minorticks_off()
    panel.text(0.97, 0.04, "bound violated", transform=panel.transAxes, ha="right", style="italic", color=GREY)
    figure.legend(loc="outside lower center", frameon=False)


def _tolerances(report: AccuracyReport) -> str:
    return ", ".join(f"{tolerance:g}" for tolerance in sorted({row.tolerance for row in report.rows}, reverse=True))


def _short(value: float | None) -> str:
    """Two digits where they say something, a power of ten beyond a thousand."""
    if value is None or not math.isfinite(value):
        return "infinite"
    if value < 1000:
        return f"{value:.3g}"
    exponent = math.floor(math.log10(value))
    return f"${value / 10**exponent:.0f}\\cdot 10^{{{exponent}}}$"
