"""Computed tomography at a low dose: the likelihood of photons against weighted and plain squares.

    python benchmarks/low_dose.py --record

Each data term has the weight of its total variation tuned on other phantoms. Then one problem of the likelihood is
solved by learnreg, certified, and by scipy's L-BFGS-B on the same objective, to the same distance from the minimiser.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch
from harness import Table, arguments, finish
from scipy.optimize import minimize
from torch import Tensor

import learnreg as lr
from learnreg.datasets import PhotonNoise, ellipse_phantom
from learnreg.lower_level.data_terms import DataTerm
from learnreg.operators import ParallelBeam2D
from learnreg.regularizers import TotalVariation

PHOTONS, ATTENUATION, RIDGE, SMOOTHING = 4096.0, 16.0, 1e-4, 1e-3
SIZE, VIEWS, IMAGES, DOSES = 96, 60, 4, (PHOTONS, PHOTONS / 16)
WEIGHTS = [1e-4 * 2.0**k for k in range(-3, 6)]


def measured(operator: ParallelBeam2D, seeds: range, photons: float) -> tuple[Tensor, Tensor]:
    """Phantoms and their noisy line integrals."""
    size = operator.domain_shape[-1]
    x = torch.stack([ellipse_phantom(i, size, 7) for i in seeds]).float()
    noise, generator = PhotonNoise(photons, ATTENUATION), torch.Generator().manual_seed(seeds.start)
    with torch.no_grad():
        b = torch.stack([noise.apply(clean, generator) for clean in operator(x)]).float()
    return x, b


def psnr(x: Tensor, truth: Tensor) -> float:
    return float((-10.0 * torch.log10((x - truth).double().square().flatten(1).mean(1))).mean())


def problem_of(operator: ParallelBeam2D, term: DataTerm, weight: float) -> lr.LowerLevelProblem:
    regularizer = TotalVariation(weight, SMOOTHING)
    return lr.LowerLevelProblem(operator, regularizer, ridge=RIDGE, data_term=term, constraint=lr.Nonnegative())


def compare_terms(operator: ParallelBeam2D, images: int, photons: float) -> list[dict[str, Any]]:
    """Each data term at its best weight."""
    x_tune, b_tune = measured(operator, range(images), photons)
    x, b = measured(operator, range(100, 100 + images), photons)
    reference = float(b_tune.mean())
    terms: dict[str, DataTerm] = {
        "squares": lr.LeastSquares(),
        "weighted squares": lr.TransmissionLeastSquares(photons, ATTENUATION, reference=reference),
        "likelihood": lr.TransmissionPoisson(photons, ATTENUATION, reference, line_integrals=True),
    }
    rows = []
    for name, term in terms.items():
        found = [(psnr(lr.solve(problem_of(operator, term, w), b_tune, 2e-3).x, x_tune), w) for w in WEIGHTS]
        best, weight = max(found)
        start = time.process_time()
        solution = lr.solve(problem_of(operator, term, weight), b, 1e-3)
        rows.append({
            "photons": f"{photons:.0f}", "data term": name, "weight": weight, "PSNR, dB": f"{psnr(solution.x, x):.2f}",
            "tuned on, dB": f"{best:.2f}", "CPU s": time.process_time() - start,
            "applications": solution.operator_applications, "largest bound": float(solution.error_bound.max()),
            "bound": solution.bound_kind,
        })  # fmt: skip
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def against_scipy(operator: ParallelBeam2D, weight: float, rms: float = 1e-3) -> dict[str, Any]:
    """Seconds of CPU to a distance from the minimiser, for one image in float64."""
    _, b = measured(operator, range(100, 101), PHOTONS)
    term = lr.TransmissionPoisson(PHOTONS, ATTENUATION, float(b.mean()), line_integrals=True)
    problem, b = problem_of(operator, term, weight).double(), b.double()
    exact = lr.solve(problem, b, 1e-8)
    start = time.process_time()
    own = lr.solve(problem, b, rms)
    seconds = time.process_time() - start
    trail: list[tuple[float, float]] = []
    x0 = np.zeros(exact.x.numel())
    start = time.process_time()

    def energy(v: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.as_tensor(v).reshape(exact.x.shape).requires_grad_()
        value = problem.energy(x, b).sum()
        return float(value.detach()), torch.autograd.grad(value, x)[0].flatten().numpy()

    def note(v: np.ndarray) -> None:
        trail.append((time.process_time() - start, float(np.sqrt(np.mean((v - exact.x.flatten().numpy()) ** 2)))))

    found = minimize(
        energy, x0, jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * x0.size, callback=note,
        options={"maxiter": 20000, "maxfun": 40000, "ftol": 1e-16, "gtol": 1e-12, "maxcor": 20},
    )  # fmt: skip
    error = float((own.x - exact.x).square().mean().sqrt())
    reached = {goal: next((t for t, distance in trail if distance <= goal), None) for goal in (rms, error)}
    difference = float(np.abs(found.x - exact.x.flatten().numpy()).max())
    return {
        "learnreg, to a certified 1e-3": seconds,
        "scipy, to a true error of 1e-3": reached[rms],
        f"scipy, to learnreg's true error, {error:.1e}": reached[error],
        f"largest difference of the minimisers, bound {float(exact.error_bound[0]):.0e}": difference,
    }


def main() -> None:
    quick = {"SIZE": 32, "VIEWS": 30, "IMAGES": 2, "DOSES": (PHOTONS,)}
    options = arguments(__doc__ or "", quick=quick)
    operator = ParallelBeam2D(SIZE, VIEWS)
    table = Table(
        "low_dose",
        "Data terms of low-dose tomography",
        "python benchmarks/low_dose.py --record",
        f"Phantoms of {SIZE}² pixels, {VIEWS} views, total variation with x >= 0, its weight tuned for each data term "
        f"on {IMAGES} phantoms by dB, then measured on as many others to a certified root-mean-square error of 1e-3. "
        "CPU seconds in one thread. Below, the likelihood of the first dose, one image in float64, against scipy's "
        "L-BFGS-B with bounds and 20 corrections on the same objective: CPU seconds to an error, which is measured "
        "against a minimiser certified to 1e-8.",
        order=62,
    )
    table.rows = [row for photons in DOSES for row in compare_terms(operator, IMAGES, photons)]
    likelihood = next(row for row in table.rows if row["data term"] == "likelihood")
    for name, figure in against_scipy(operator, likelihood["weight"]).items():
        table.notes.append(f"{name}: {'not reached' if figure is None else f'{figure:.3g}'}")
    finish(table, options)


if __name__ == "__main__":
    main()
