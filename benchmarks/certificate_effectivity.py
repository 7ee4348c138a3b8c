"""How close the bounds of plain hypergradients are to their true errors.

    python benchmarks/certificate_effectivity.py --record

Iterates at a given relative state error, formed by random perturbations and by stopping a solver early, adjoint states
from conjugate gradients to 1e-2; judged by ``lr.certify``. No data needed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import torch
from harness import Table, arguments, finish
from truth.effectivity import ADJOINT, SCAN_NOISE, SCAN_SIDE, SCAN_WEIGHT, SHAPE, SIDE, STATE_ERROR, Setting, row, scans

from learnreg.operators import Blur, Identity

SMOOTHINGS = (1e-2, 3e-3, 1e-3)


def problems() -> Iterator[Setting]:
    blur = Blur(torch.full((3, 3), 1 / 9, dtype=torch.float64), SHAPE, "reflect")
    for smoothing in SMOOTHINGS:
        yield Setting(f"denoising, smoothing {smoothing:g}", Identity(SHAPE), smoothing)
    for smoothing in SMOOTHINGS:
        yield Setting(f"blur 3x3, ridge 1e-2, smoothing {smoothing:g}", blur, smoothing, 1e-2)
    if importlib.util.find_spec("astra") is not None:
        yield from scans()


def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={"images": 1, "SMOOTHINGS": (1e-2,)},
        images={"type": int, "default": 30, "help": "images per problem"},
    )
    table = Table(
        name="certificate_effectivity",
        order=6,
        title="Bound over true error of given hypergradients",
        command="python benchmarks/certificate_effectivity.py --record",
        text=f"""{options.images} random images of {SIDE} x {SIDE} pixels per problem, 16 filters 5x5 (DCT) of weight
0.5/16 each, noise 25/255, batch mean of ½‖x - x_true‖². Tomography: phantoms of {SCAN_SIDE} x {SCAN_SIDE} pixels,
weights {SCAN_WEIGHT:g}/16, noise of {100 * SCAN_NOISE:g} % of the mean sinogram. Two states per image with a relative
error of {STATE_ERROR:g}: random, and along the way of L-BFGS; adjoint states by conjugate gradients to {ADJOINT:g}. The
gradient formed from exactly these is judged by `lr.certify`; the truth comes from Newton's method to rounding.
*applications*: of the sharp certificate.""",
    )
    for setting in problems():
        table.rows.append(row(setting, options.images))
    table.tracked["largest median, sharp"] = max(float(r["sharp, median"]) for r in table.rows)
    finish(table, options)


if __name__ == "__main__":
    main()
