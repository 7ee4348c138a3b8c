"""Your own operator
=================

Your own forward operator: a function of batched tensors is enough."""

import torch
from torch.nn.functional import avg_pool2d

import learnreg as lr
from learnreg.datasets import DenoisingPatches, natural_images
from learnreg.operators import from_callables
from learnreg.regularizers import FieldsOfExperts

# Super-resolution: each detector sees the mean of 2 x 2 pixels. adjoint=None derives the transpose by autograd; pass a
# function where forward leaves torch (NumPy, a compiled library): derivatives of all orders still work.
A = from_callables(lambda x: avg_pool2d(x, 2), None, domain_shape=(1, 32, 32), range_shape=(1, 16, 16), check=True)
print(A, f"norm at most {A.norm_bound():.6f}, {A.norm_bound_kind}")

patches = DenoisingPatches(natural_images("train"), sigma=0.02, patch=32)
x_true = torch.stack([patches[i][1] for i in range(4)])
b = A(x_true) + 0.02 * torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))

problem = lr.LowerLevelProblem(A, FieldsOfExperts(filters=8, size=3), ridge=0.02)  # the ridge makes bounds possible
solution = lr.solve(problem, b, tolerance=1e-4)
print(solution.status, solution.error_bound)
hg = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=1e-2)
print(f"certified: {hg.certified}, relative error at most {hg.relative_error_bound:.1e}")
