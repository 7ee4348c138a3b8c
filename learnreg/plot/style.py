"""One style of figures, told apart by colour-blind readers, too, without any global state of matplotlib."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

from learnreg.models.extras import require

__all__ = ["COLOURS", "GREY", "SHADE", "figure_file", "new_figure", "number_decades", "paper_style", "styled"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito
GREY, SHADE = "#555555", "#E3E3E3"
_FEW_DECADES = 100.0

_STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10.0,
    "axes.labelsize": 10.0,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,  # text stays text
}

P = ParamSpec("P")
T = TypeVar("T")


def styled(function: Callable[P, T]) -> Callable[P, T]:
    """Draws in the style of this package."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with paper_style():
            return function(*args, **kwargs)

    return wrapped


def paper_style() -> AbstractContextManager[Any]:
    """The style of these figures for some of your own, which are drawn inside: ``with lr.plot.paper_style(): ...``.
    Their colours are ``lr.plot.COLOURS``, told apart by colour-blind readers.

    Returns
    -------
    A context manager; the settings of matplotlib are as before outside of it.

    Raises
    ------
    ConfigError: matplotlib is missing.
    """
    context: AbstractContextManager[Any] = require("matplotlib", "drawing figures", "matplotlib").rc_context(_STYLE)
    return context


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, in inches, that no window and no list of figures knows."""
    figure = require("matplotlib.figure", "drawing figures", "matplotlib").Figure(
        figsize=(width, height), layout="constrained"
    )
    require("matplotlib.backends.backend_agg", "drawing figures", "matplotlib").FigureCanvasAgg(figure)
    return figure


def number_decades(axes: Any) -> None:
    """Ticks of a logarithmic y axis, once its limits are known, at 1, 2 and 5 times powers of ten as plain numbers,
    where there are fewer than two decades: usual labels are many and long there."""
    low, high = axes.get_ylim()
    if axes.get_yscale() != "log" or not 0 < low < high < _FEW_DECADES * low:
        return
    ticker = require("matplotlib.ticker", "drawing figures", "matplotlib")
    axes.yaxis.set_major_locator(ticker.LogLocator(10.0, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())


@styled
def figure_file(figure: Any, kind: str, dpi: int = 200, **options: Any) -> bytes:
    """The content of a file of the figure, such as "png", "pdf" or "webp"; of the same figure always the same.
    ``options`` go to Pillow."""
    buffer = io.BytesIO()
    metadata = {"CreationDate": None} if kind == "pdf" else {}
    figure.savefig(
        buffer, format=kind, dpi=dpi, metadata=metadata or None, **({"pil_kwargs": options} if options else {})
    )
    return buffer.getvalue()
