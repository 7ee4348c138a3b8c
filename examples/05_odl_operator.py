"""An operator of ODL
==================

An operator of ODL: tomography in weighted function spaces. Needs: pip install 'learnreg[ct,odl]'."""

import sys

import torch

import learnreg as lr
from learnreg.operators import from_odl, to_odl
from learnreg.regularizers import TotalVariation

try:
    import odl
    from odl.applications import tomo

    space = odl.uniform_discr([-1, -1], [1, 1], (32, 32), dtype="float32")  # astra computes in float32
    ray = tomo.RayTransform(space, tomo.parallel_beam_geometry(space, num_angles=20), impl="astra_cpu")
except (ImportError, ValueError) as error:
    sys.exit(print(f"skipped: {error}"))

# ODL's adjoint belongs to weighted inner products (a cell of the image has another volume than one of the sinogram);
# this one is the transpose, which gradients need. It was held against the adjoint test just now.
A = from_odl(ray)
print(A, f"weights {space.weighting.const:.4f} and {ray.range.weighting.const:.4f}")

# In float32, adjoints and Hessian-vector products are exact to rounding (1e-7); assembled, they are exact in float64,
# and products are faster; it takes one call per pixel.
A = from_odl(ray, assembled=True)
phantom = torch.tensor(odl.core.phantom.shepp_logan(space, modified=True).asarray())[None, None]
b = A(phantom) + 0.02 * torch.randn(1, *A.range_shape, generator=torch.Generator().manual_seed(0))

problem = lr.LowerLevelProblem(A, TotalVariation(weight=0.02, smoothing=1e-2), ridge=1e-2, constraint=lr.Nonnegative())
solution = lr.solve(problem, b, tolerance=1e-2)
print(solution.status, f"error at most {float(solution.error_bound[0]):.1e}")
hg = lr.hypergradient(problem, b, lr.SquaredError(phantom), tolerance=0.1)
print({name: float(gradient) for name, gradient in hg.gradient.items()}, hg.bound_kind, hg.reason)

back = to_odl(A, dtype="float32")  # for ODL's own solvers, with Euclidean spaces
print(back.domain, "->", back.range)
