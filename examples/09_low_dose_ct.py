"""Low-dose tomography
===================

Low-dose computed tomography: from photon counts to line integrals and the statistical weights of the rays."""

import torch

import learnreg as lr
from learnreg.datasets import PhotonNoise, ellipse_phantom, line_integrals, statistical_weights
from learnreg.operators import ParallelBeam2D
from learnreg.regularizers import TotalVariation

SIZE, VIEWS, PHOTONS, ATTENUATION = 48, 40, 5e3, 16.0

A = ParallelBeam2D(SIZE, VIEWS)

# Attenuation 16: the line integral of a ray through one image side of value 1 (docs/ct_data.md).
x_true = ellipse_phantom(3, SIZE, held_out=True)
counts = PhotonNoise(PHOTONS, ATTENUATION).counts(A(x_true[None])[0], torch.Generator().manual_seed(0))
found = line_integrals(counts, flat=PHOTONS)
b = (found.values / ATTENUATION).float()
weights = statistical_weights(counts).float()  # inverse variances, with mean 1
print(f"{int(counts.min())} to {int(counts.max())} photons, {found.floored} rays without any")
print(f"weights from {float(weights.min()):.1e} to {float(weights.max()):.1f}")


def reconstruct(data_term: lr.LeastSquares, weight: float) -> tuple[float, float]:
    """PSNR and certified error bound; one problem for each measurement, since the weights are those of its rays."""
    problem = lr.LowerLevelProblem(
        A, TotalVariation(weight, smoothing=1e-2), ridge=1e-4, data_term=data_term, constraint=lr.Nonnegative()
    )
    solution = lr.solve(problem, b[None], tolerance=3e-3)
    return float(-10 * torch.log10((solution.x[0] - x_true).square().mean())), float(solution.error_bound)


for name, data_term in (
    ("equal weights", lr.LeastSquares()),
    ("statistical weights", lr.WeightedLeastSquares(weights)),
):
    psnr, bound = max(reconstruct(data_term, weight) for weight in (3e-5, 3e-4))
    print(f"{name}: {psnr:.2f} dB, root-mean-square error of x at most {bound:.1e}")
