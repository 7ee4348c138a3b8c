"""Four coils, a quarter of the lines, and a phase
===============================================

Complex images from four coils that measure a quarter of the lines of k-space. The regularizer sees real and imaginary
part at once (``coupling="complex"``): the length of the complex differences does not depend on the phase of the image.
"""

import torch

import learnreg as lr
from learnreg.datasets import (
    GaussianNoise,
    KSpacePairs,
    cartesian_mask,
    ellipse_phantom,
    simulate_coil_maps,
    with_smooth_phase,
)
from learnreg.operators import CartesianMRI, as_complex
from learnreg.regularizers import TotalVariation

SIDE = 96
mask = cartesian_mask(SIDE, acceleration=4, center_fraction=0.08, generator=torch.Generator().manual_seed(2))
coils = simulate_coil_maps(4, SIDE, SIDE)
A = CartesianMRI(mask, coils)
clean = with_smooth_phase(ellipse_phantom(2, SIDE, held_out=True), seed=1)
b = KSpacePairs(A, [clean], GaussianNoise(0.01), seed=1)[0][0]
print(f"{int((mask > 0).sum())} of {SIDE} lines, {len(coils)} coils: {A}")


def magnitude(x: torch.Tensor) -> torch.Tensor:
    return as_complex(x[None])[0].abs()


def psnr(x: torch.Tensor) -> float:
    return float(-10 * (magnitude(x) - magnitude(clean)).square().mean().log10())


# %%
# Where lines are missing A is singular; a small ridge makes the energy strongly convex, and bounds possible.

images = {"lines filled with 0": A.adjoint(b[None])[0]}
for coupling in ("separate", "complex"):
    R = TotalVariation(3e-3, smoothing=1e-2, channels=2, coupling=coupling)
    solution = lr.solve(lr.LowerLevelProblem(A, R, ridge=1e-3), b[None], tolerance=3e-3)
    images[f"total variation, {coupling}"] = solution.x[0]
    print(f"{coupling}: {psnr(solution.x[0]):.2f} dB, within {float(solution.error_bound):.0e} of the minimiser")
    assert solution.certified

quality = {name: psnr(x) for name, x in images.items()}
filled, separate, together = quality.values()
assert together > filled + 5
assert together > separate

# %%
# Magnitudes.

magnitudes = {f"{name}, {quality[name]:.1f} dB": magnitude(x) for name, x in images.items()}
comparison = lr.plot.comparison(magnitudes, magnitude(clean), measured=next(iter(magnitudes)))

# %%
# The phase of the image, where there is one, and what the coils see.

seen = magnitude(clean) > 0.05


def phase(x: torch.Tensor) -> torch.Tensor:
    return torch.where(seen, as_complex(x[None])[0].angle(), 0.0)


phases = lr.plot.maps(
    {"phase, clean": phase(clean), "phase, reconstructed": phase(images["total variation, complex"])},
    signed=True,
    window=(-3.2, 3.2),
    label="radians",
)
sensitivities = lr.plot.maps({f"coil {i + 1}": s.abs() for i, s in enumerate(coils)}, window=(0.0, 1.0), label="|s|")
