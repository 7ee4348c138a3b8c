"""How fast recipes learn: PSNR on the images held out against minutes of training.

    python examples/recipes/run.py NAME --data DATA --out RUNS/NAME
    python benchmarks/learning_curves.py --runs RUNS --record

RUNS holds the folders that recipes were run into, by their names; ``--starts FOLDER`` holds further runs of the first
minutes of some of them, drawn with broken lines: they show how far a curve is repeated.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from harness import ROOT, Table, arguments, finish

from learnreg.plot.style import COLOURS, figure_file, new_figure, styled

MOMENTS = (2.0, 5.0, 10.0, 20.0)
FIGURE = "models/learning_curves.png"

TEXT = """PSNR in dB on the images held out of training, means over images and noise levels, best so far at each minute
of the clock of training in one thread (tuning of the start and audits included, data and report not); *end*: after all
stages. What models reach on test images is in "Shipped models beside their peers"."""

Curve = list[tuple[float, float, int]]
"""Minutes, PSNR, updates."""


def curve_of(folder: Path) -> Curve:
    """Of the stages of a recipe, one after the other."""
    found: Curve = []
    stages = sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    before, updates = 0.0, 0
    for stage in stages:
        rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        if not rows:  # it has just begun
            break
        found += [(before + r["seconds"] / 60.0, r["psnr"], updates + r["step"]) for r in rows if "psnr" in r]
        before, updates = before + rows[-1]["seconds"] / 60.0, updates + rows[-1]["step"]
    return found


def best_until(curve: Curve, minutes: float) -> float | None:
    """The best PSNR until then; None where the run had ended."""
    return max((psnr for at, psnr, _ in curve if at <= minutes), default=None) if curve[-1][0] >= minutes else None


def row(name: str, curve: Curve) -> dict[str, Any]:
    moments = {f"{m:g} min": best_until(curve, m) for m in MOMENTS}
    shown = {key: None if value is None else f"{value:.2f}" for key, value in moments.items()}
    minutes, _, updates = curve[-1]
    return {
        "recipe": name,
        **shown,
        "end": f"{max(p for _, p, _ in curve):.2f}",
        "minutes": minutes,
        "updates": updates,
    }


@styled
def draw(curves: dict[str, Curve], starts: dict[str, Curve]) -> Any:
    """A panel for each, as images and noise differ: the last 1.5 dB."""
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = new_figure(3.0 * columns, 2.3 * rows + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    ticks = (0.5, 1, 2, 5, 10, 20, 50, 100, 300)
    longest = 1.1 * max(curve[-1][0] for curve in curves.values())
    for axes, (name, curve) in zip(panels, curves.items(), strict=False):
        for found, style, colour in ((curve, "-", COLOURS[0]), (starts.get(name, []), "--", COLOURS[1])):
            best, points = -math.inf, []
            for minutes, psnr, _ in found:
                best = max(best, psnr)
                points.append((minutes, best))
            if points:
                axes.plot(*zip(*points, strict=True), style, color=colour)
        axes.set_title(name)
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlim(0.5, longest)
        top = max(psnr for _, psnr, _ in curve)
        axes.set_ylim(top - 1.5, top + 0.1)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(curves) - columns) : len(curves)]:
        axes.set_xlabel("minutes of training")
        axes.tick_params(labelbottom=True)
    for axes in panels[::columns]:
        axes.set_ylabel("PSNR [dB]")
    return figure


def runs_in(folder: Path | None) -> dict[str, Curve]:
    if folder is None:
        return {}
    found = sorted(
        p for p in folder.iterdir() if (p / "1" / "metrics.jsonl").exists() or (p / "metrics.jsonl").exists()
    )
    curves = {path.name: curve_of(path) for path in found}
    return {name: curve for name, curve in curves.items() if curve}


def main() -> None:
    options = arguments(
        __doc__ or "",
        runs={"type": Path, "required": True, "help": "folder of the runs of recipes"},
        starts={"type": Path, "help": "folder of runs of their beginnings"},
    )
    curves, starts = runs_in(options.runs), runs_in(options.starts)
    table = Table(
        "learning_curves",
        "Learning curves of recipes",
        "python benchmarks/learning_curves.py --runs RUNS --record",
        TEXT,
        order=37,
    )
    table.rows = [row(name, curve) for name, curve in curves.items()]
    table.rows += [row(f"{name}, again", curve) for name, curve in starts.items()]
    if options.record:
        (ROOT / "docs" / FIGURE).write_bytes(figure_file(draw(curves, starts), "png", dpi=150))
        table.notes.append(f"![PSNR on images held out against minutes]({FIGURE})")
    finish(table, options, ("recipe",))


if __name__ == "__main__":
    main()
