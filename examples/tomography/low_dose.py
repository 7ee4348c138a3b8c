"""Few photons: how to weigh what the rays say
===========================================

A scan with few photons. Behind the object the counts are so low that the logarithm of a count is noise. Three data
terms for the same measurement: least squares of line integrals, the same with statistical weights, and the likelihood
of the counts themselves.
"""

import torch

import learnreg as lr
from learnreg.datasets import PhotonNoise, ellipse_phantom, line_integrals, statistical_weights
from learnreg.operators import ParallelBeam2D, filtered_back_projection
from learnreg.regularizers import TotalVariation

SIZE, VIEWS, PHOTONS, ATTENUATION = 64, 60, 5e3, 16.0

# %%
# An attenuation of 16 is the line integral of a ray through one image side of value 1 (see the page on CT data).

A = ParallelBeam2D(SIZE, VIEWS)
clean = ellipse_phantom(3, SIZE, held_out=True)
counts = PhotonNoise(PHOTONS, ATTENUATION).counts(A(clean[None])[0], torch.Generator().manual_seed(0))
found = line_integrals(counts, flat=PHOTONS)
b = (found.values / ATTENUATION).float()
weights = statistical_weights(counts).float()  # inverse variances, with mean 1
reference = float(b.mean())  # where the curvature of the likelihood is 1
print(f"{int(counts.min())} to {int(counts.max())} photons, weights {weights.min():.0e} to {weights.max():.1f}")

# %%
# The weight of total variation: the best of four for each, on another phantom with its own noise.

other = ellipse_phantom(5, SIZE)
other_counts = PhotonNoise(PHOTONS, ATTENUATION).counts(A(other[None])[0], torch.Generator().manual_seed(1))
other_b = (line_integrals(other_counts, flat=PHOTONS).values / ATTENUATION).float()
likelihood = lr.TransmissionPoisson(PHOTONS, ATTENUATION, reference)
terms = {
    "least squares": (lr.LeastSquares(), lr.LeastSquares(), other_b, b),
    "statistical weights": (
        lr.WeightedLeastSquares(statistical_weights(other_counts).float()),
        lr.WeightedLeastSquares(weights),
        other_b,
        b,
    ),
    "likelihood of counts": (likelihood, likelihood, other_counts.float(), counts.float()),
}


def psnr(x: torch.Tensor, truth: torch.Tensor = clean) -> float:
    return float(-10 * (x - truth).square().mean().log10())


def solve(data_term: lr.LeastSquares, weight: float, measured: torch.Tensor) -> lr.Solution:
    R = TotalVariation(weight, smoothing=1e-2)
    problem = lr.LowerLevelProblem(A, R, ridge=1e-4, data_term=data_term, constraint=lr.Nonnegative())
    return lr.solve(problem, measured[None], tolerance=5e-3)


images = {"filtered back-projection": filtered_back_projection(A, b[None])[0]}
for name, (tried, used, other_measured, measured) in terms.items():
    best = max((3e-5, 1e-4, 3e-4, 1e-3), key=lambda w: psnr(solve(tried, w, other_measured).x[0], other))
    solution = solve(used, best, measured)
    images[name] = solution.x[0]
    print(f"{name}: weight {best:g}, {psnr(solution.x[0]):.2f} dB, within {float(solution.error_bound):.0e}", end=", ")
    print(solution.bound_kind)
    assert solution.certified

quality = {name: psnr(x) for name, x in images.items()}
assert quality["statistical weights"] > quality["least squares"] + 0.5
assert quality["likelihood of counts"] > quality["least squares"] + 0.5
figure = lr.plot.comparison(
    {f"{name}, {quality[name]:.1f} dB": x for name, x in images.items()},
    clean,
    measured=f"filtered back-projection, {quality['filtered back-projection']:.1f} dB",
    window=(0.0, float(clean.max())),
)
