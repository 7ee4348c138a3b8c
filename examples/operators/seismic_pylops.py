"""An operator of PyLops
=====================

Reflections under the ground: PyLops convolves reflectivities with a wavelet, trace by trace, and drops traces; learnreg
takes the operator as it is, checks its adjoint, and reconstructs impedances from what is left.
"""

import numpy as np
import pylops
import torch

import learnreg as lr
from learnreg.operators import from_pylops
from learnreg.regularizers import TotalVariation

DEPTH, TRACES, SIGMA = 64, 64, 0.01

# %%
# Layers with a fault and a lens: the logarithm of the impedance.

depth, place = np.meshgrid(np.arange(DEPTH), np.arange(TRACES), indexing="ij")
layers = depth + 4 * np.sin(place / 12) + 6 * (place > 38)
impedance = 0.2 + 0.25 * (layers > 16) - 0.15 * (layers > 30) + 0.4 * (layers > 48)
impedance = impedance + 0.3 * (((depth - 38) / 4) ** 2 + ((place - 18) / 9) ** 2 < 1)

# %%
# PyLops: half of the derivative along the depth, a Ricker wavelet, and two thirds of the traces.

t = np.arange(-8, 9) / 4
wavelet = (1 - 2 * (np.pi * 0.5 * t) ** 2) * np.exp(-((np.pi * 0.5 * t) ** 2))
reflect = 0.5 * pylops.FirstDerivative((DEPTH, TRACES), axis=0, kind="forward")
convolve = pylops.signalprocessing.Convolve1D((DEPTH, TRACES), h=wavelet, offset=8, axis=0)
kept = np.sort(np.random.default_rng(0).choice(TRACES, 2 * TRACES // 3, replace=False))
sample = pylops.Restriction((DEPTH, TRACES), kept, axis=1)
A = from_pylops(sample @ convolve @ reflect, (1, DEPTH, TRACES), (1, DEPTH, len(kept)))
print(A, f"norm at most {A.norm_bound():.3f}, {A.norm_bound_kind}")

clean = torch.from_numpy(impedance)[None]
b = A(clean[None])[0]
b = b + SIGMA * torch.randn(b.shape, generator=torch.Generator().manual_seed(0)).double()


def psnr(x: torch.Tensor) -> float:
    """Up to a constant, of which no reflection knows."""
    error = x - clean
    return float(-10 * (error - error.mean()).square().mean().log10())


# %%
# Least squares with a ridge, and total variation, which extends layers across traces that are missing. The ridge is
# small enough to leave the level to the data, which do not know it: shown is the image with the mean of the truth.

images = {}
for name, weight, ridge in (("ridge", 1e-8, 1e-3), ("total variation", 3e-3, 1e-4)):
    problem = lr.LowerLevelProblem(A, TotalVariation(weight, smoothing=1e-2).double(), ridge=ridge)
    solution = lr.solve(problem, b[None], tolerance=5e-3)
    assert solution.certified
    x = solution.x[0]
    images[f"{name}, {psnr(x):.1f} dB"] = x - x.mean() + clean.mean()
    print(f"{name}: {psnr(x):.2f} dB, within {float(solution.error_bound):.0e} ({solution.bound_kind})")
ridge_only, variation = (psnr(x) for x in images.values())
assert variation > ridge_only + 5

measured = lr.plot.maps({"reflections, traces that are there": b}, signed=True)
figure = lr.plot.comparison(images, clean, measured=next(iter(images)), window=(-0.1, 1.1))
# sphinx_gallery_thumbnail_number = 2
