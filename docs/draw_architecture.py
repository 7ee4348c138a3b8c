"""Draw docs/architecture.png: the folders of learnreg in their order, and the way of a batch through them.

python docs/draw_architecture.py
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

INK, QUIET, WAY = "#1b2a38", "#8795a1", "#b3541e"
STOREYS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "ground",
        "#eef2f5",
        (
            ("errors, result", "what users meet"),
            ("kernels", "compiled passes"),
            ("linear", "operators, norms"),
            ("losses", "upper-level losses"),
            ("convolutions", "filter banks"),
            ("potentials", "f, f', f'' on intervals"),
        ),
    ),
    (
        "core",
        "#e3edf7",
        (
            ("lower_level", "problem, frozen, instance"),
            ("certificates", "bounds of a point"),
            ("solvers", "x, to a certified error"),
            ("hypergradients", "methods, search, certify"),
            ("regularizers", "families"),
            ("upper_level", "descent, layer"),
        ),
    ),
    (
        "world",
        "#eaf4ea",
        (
            ("operators", "blur, Fourier, CT, adapters"),
            ("datasets", "photographs, CT, files"),
            ("testing", "acceptance checks"),
            ("models", "files and names"),
        ),
    ),
    (
        "application",
        "#fbf1e4",
        (
            ("training", "batches to run folders"),
            ("report", "pictures and numbers"),
            ("accuracy", "bounds beside truth"),
            ("commands", "the command line"),
        ),
    ),
)
BATCH = (
    ("datasets", "(b, x_true)"),
    ("lower_level", "problem.frozen().at(b)"),
    ("solvers", "x"),
    ("hypergradients", "X, gradient"),
    ("certificates", "error bound, loss interval"),
    ("upper_level", "step, or tighten"),
)
"""The way of a batch: where it goes, and what it leaves with."""


def draw() -> Figure:
    """The picture."""
    figure = Figure(figsize=(11.0, 5.6))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0.0, 11.0), ylim=(0.0, 5.6))
    axes.set_axis_off()
    numbers = {room: k for k, (room, _) in enumerate(BATCH, 1)}
    for level, (name, colour, rooms) in enumerate(STOREYS):
        y, width = 1.0 + 1.02 * level, 10.4 / len(rooms)
        axes.text(0.25, y + 0.41, name, rotation=90, va="center", ha="center", color=QUIET, fontsize=9)
        for k, (room, what) in enumerate(rooms):
            x = 0.45 + k * width
            box = FancyBboxPatch((x, y), width - 0.12, 0.82, boxstyle="round,pad=0.01", fc=colour, ec=QUIET, lw=0.8)
            axes.add_patch(box)
            middle = x + 0.5 * width - 0.06
            axes.text(middle, y + 0.52, room, ha="center", color=INK, fontsize=11, weight="bold")
            axes.text(middle, y + 0.2, what, ha="center", color=INK, fontsize=8)
            if room in numbers:
                _badge(axes, x + 0.04, y + 0.78, numbers[room])
    rule = "A folder imports only folders before it: from left to right, from bottom to top."
    axes.text(0.45, 5.25, rule, color=INK, fontsize=11)
    axes.text(0.45, 0.68, "The way of a batch", color=WAY, fontsize=10, weight="bold")
    for k, (room, what) in enumerate(BATCH):
        x, y = 0.6 + (k % 3) * 3.45, 0.42 - 0.28 * (k // 3)
        _badge(axes, x, y + 0.04, k + 1)
        axes.text(x + 0.17, y, f"{room}: {what}", color=INK, fontsize=9)
    return figure


def _badge(axes: Axes, x: float, y: float, number: int) -> None:
    axes.add_patch(Circle((x, y), 0.1, fc=WAY, ec="none"))
    axes.text(x, y - 0.005, str(number), ha="center", va="center", color="white", fontsize=8, weight="bold")


if __name__ == "__main__":
    target = Path(__file__).with_suffix("").parent / "architecture.png"
    draw().savefig(target, dpi=130)
    print(target)
