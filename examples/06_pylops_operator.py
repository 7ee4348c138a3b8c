"""An operator of PyLops
=====================

An operator of PyLops: deblurring with a convolution and a derivative that is measured, too. Needs: pip install
pylops."""

import sys

import numpy as np
import torch

import learnreg as lr
from learnreg.datasets import DenoisingPatches, natural_images
from learnreg.operators import from_pylops, to_scipy
from learnreg.regularizers import FieldsOfExperts

try:
    import pylops
except ImportError as error:
    sys.exit(print(f"skipped: {error}"))

n = 32
window = np.outer(np.hanning(7), np.hanning(7))
blur = pylops.signalprocessing.Convolve2D((n, n), h=window / window.sum(), offset=(3, 3))
derivative = pylops.FirstDerivative((n, n), axis=0)
A = from_pylops(pylops.VStack([blur, 0.5 * derivative]), domain_shape=(1, n, n), range_shape=(2, n, n))
print(A, f"norm at most {A.norm_bound():.6f}, {A.norm_bound_kind}")

patches = DenoisingPatches(natural_images("train"), sigma=0.02, patch=n)
x_true = torch.stack([patches[i][1] for i in range(2)]).double()
b = A(x_true) + 0.02 * torch.randn(2, 2, n, n, generator=torch.Generator().manual_seed(0)).double()

problem = lr.LowerLevelProblem(A, FieldsOfExperts(filters=8, size=3).double(), ridge=0.05)
solution = lr.solve(problem, b, tolerance=1e-4)
print(solution.status, solution.error_bound)
hg = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=1e-2)
print(f"certified: {hg.certified}, relative error at most {hg.relative_error_bound:.1e}")

S = to_scipy(A)  # for SciPy's solvers
print(S.shape, float(np.abs(S.rmatvec(S.matvec(np.ones(n * n)))).max()))
