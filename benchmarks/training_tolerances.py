"""Training with adaptive lower-level tolerances against fixed ones and against fixed numbers of iterations.

One Field of Experts denoiser is trained several times from the same start with the same minibatches and step sizes;
only the accuracy of the lower level differs. What counts is the work until the true training loss, evaluated
accurately and not counted, reaches a target: the loss of the most accurate run after 60 % of its updates.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from harness import ROOT, Table, arguments, finish
from training_runs import (
    IMAGE_SIZE,
    STEP_SIZE,
    TRUE_TOLERANCE,
    Curve,
    FixedSteps,
    Scale,
    Setting,
    fixed,
    fixed_steps,
    train,
    training_items,
)

from learnreg.commands.process import large_blocks_kept


def run_all(items: list[Any], scale: Scale, quick: bool) -> list[Curve]:
    """Adaptive, all fixed tolerances, fixed numbers of steps, and the best two without warm starts."""
    adaptive = train(Setting("adaptive", audits=True), items, scale)
    tolerances = (1e-1, 1e-2) if quick else (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    several = {relative: train(fixed(relative), items, scale) for relative in tolerances}
    steps = [
        train(fixed_steps(count, warm), items, scale)
        for count, warm in (((5, True),) if quick else ((20, True), (20, False), (50, False)))
    ]
    target = target_loss([adaptive, *several.values()])
    best = min(several, key=lambda r: several[r].work_until(target, several[r].applications))
    cold = [
        train(Setting("adaptive, cold starts", audits=True, warm=False), items, scale),
        train(fixed(best, warm=False), items, scale),
    ]
    return [adaptive, *several.values(), *steps, *cold]


def target_loss(curves: list[Curve]) -> float:
    """The smallest true loss of any run after 60 % of the updates."""
    return min(loss for c in curves for u, loss in zip(c.updates, c.loss, strict=True) if u <= 0.6 * c.updates[-1])


def to_row(curve: Curve, target: float, best: Curve) -> dict[str, Any]:
    applications = curve.work_until(target, curve.applications)
    seconds = curve.work_until(target, curve.seconds)
    reached = math.isfinite(applications)
    return {
        "lower level": curve.setting.name,
        "updates": curve.work_until(target, curve.updates) if reached else "not reached",
        "applications": round(applications) if reached else None,
        "over best fixed": applications / best.work_until(target, best.applications) if reached else None,
        "CPU s": seconds if reached else None,
        "CPU over best fixed": seconds / best.work_until(target, best.seconds) if reached else None,
        "final loss": f"{curve.loss[-1]:.4f}",
        "final PSNR": f"{curve.psnr[-1]:.2f}",
        "best PSNR": f"{max(curve.psnr):.2f}",
        "all applications": curve.applications[-1],
        "of audits": sum(a.applications for a in curve.audits) or None,
        "condition bound": round(curve.condition[-1]),
        "condition at x": round(curve.eigenvalue),
    }


def to_table(curves: list[Curve], scale: Scale, source: str) -> Table:
    target = target_loss(curves)
    plain = [c for c in curves if c.setting.name.startswith("fixed") and c.setting.warm]
    best = min(plain, key=lambda c: c.work_until(target, c.applications))
    table = Table(
        "training_tolerances",
        "Training: adaptive tolerances against fixed ones",
        "python benchmarks/training_tolerances.py --data DIR --record",
        f"A Field of Experts denoiser ({scale.filters} filters 5x5, initial smoothing 5e-3, at least 1e-4) on "
        f"{scale.patches} patches of {scale.patch}² pixels ({source}), sigma 25/255, float32: {scale.updates} updates "
        f"of Adam on minibatches of {scale.batch}, step size {STEP_SIZE:g} falling by a half cosine, the same start, "
        f"order and step sizes in all runs. Work until the true training loss (solved to {TRUE_TOLERANCE:g} at every "
        f"{scale.every}th update, not counted, interpolated between) is {target:.4f}, the smallest of any run "
        "after 60 % of the updates. *fixed r*: root-mean-square error of the state at most "
        f"{IMAGE_SIZE:g} r, certified, and relative residual of the adjoint equation at most r. *gradient steps*: that "
        "many steps of accelerated gradient for the state and for the adjoint equation. Audits are counted, an "
        "application on two samples like one on a minibatch.",
        [to_row(curve, target, best) for curve in curves],
        order=50,
    )
    work = {c.setting.name: (c.work_until(target, c.applications), c.work_until(target, c.seconds)) for c in curves}
    for k, what in enumerate(("applications", "CPU seconds")):
        ratio = work["adaptive"][k] / work[best.setting.name][k]
        if math.isfinite(ratio):
            table.tracked[f"adaptive over best fixed, {what}"] = ratio
    table.notes = [f"{c.setting.name}: {c.failure}" for c in curves if c.failure]
    table.notes.append("![training curves](benchmarks_training.png)")
    return table


def draw(curves: list[Curve], target: float, path: Path) -> None:
    """PSNR of the exact lower-level solutions against applications, and their loss over that of the tightest fixed
    tolerance against updates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(14, 5.4), layout="constrained")
    plain = [c for c in curves if c.setting.name.startswith("fixed") and c.setting.warm]
    shades = {c.setting.name: pyplot.get_cmap("viridis")(k / max(1, len(plain) - 1)) for k, c in enumerate(plain)}
    others = {c.setting.name: f"C{k}" for k, c in enumerate(c for c in curves if c not in plain)}
    tightest = min(plain, key=lambda c: c.setting.tolerances.state)
    for curve in curves:
        style = line_style(curve, shades | others)
        left.plot(curve.applications[1:], curve.psnr[1:], label=curve.setting.name, **style)
        pairs = zip(curve.loss, tightest.loss, strict=False)
        excess = [100.0 * (p / q - 1.0) for p, q in pairs]
        right.plot(curve.updates[: len(excess)], excess, **style)
    offset = curves[0].psnr[0] + 10.0 * math.log10(curves[0].loss[0])
    left.axhline(offset - 10.0 * math.log10(target), color="grey", linewidth=0.8, label="target")
    top = max(max(c.psnr) for c in curves)
    left.set(xlabel="operator applications, audits included", ylabel="true training PSNR in dB", xscale="log")
    left.set_ylim(top - 0.9, top + 0.05)
    right.set(xlabel="updates", ylabel=f"true training loss over that of {tightest.setting.name}, in %")
    right.set_yscale("symlog", linthresh=0.1)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    figure.savefig(path, dpi=100)


def line_style(curve: Curve, colours: dict[str, Any]) -> dict[str, Any]:
    """Adaptive runs are red and thick, cold starts dotted, fixed numbers of steps dashed."""
    stepped = isinstance(curve.setting.method, FixedSteps)
    line = "--" if stepped else "-"
    return {
        "color": "red" if curve.setting.audits else colours[curve.setting.name],
        "linewidth": 2.4 if curve.setting.audits else 1.4,
        "linestyle": line if curve.setting.warm else (0, (1, 1)) if not stepped else "-.",
        "marker": ".",
    }


@large_blocks_kept()
def main() -> None:
    options = arguments(
        __doc__,
        data={"default": os.environ.get("LEARNREG_DATA"), "help": "folder with BSDS500; natural images without it"},
        updates={"type": int, "default": Scale.updates, "help": f"updates of each run (default {Scale.updates})"},
        figure={"default": None, "help": "where to write the curves (default docs/benchmarks_training.png on record)"},
    )
    scale = Scale(8, 32, 16, 8, 10, 2) if options.quick else Scale(updates=options.updates)
    items, source = training_items(options.data, scale)
    curves = run_all(items, scale, options.quick)
    path = options.figure or (ROOT / "docs" / "benchmarks_training.png" if options.record else None)
    if path:
        draw(curves, target_loss(curves), Path(path))
    finish(to_table(curves, scale, source), options)


if __name__ == "__main__":
    main()
