"""An operator of ODL
==================

ODL's ray transform, computed by ASTRA in float32, between weighted function spaces. Its own adjoint belongs to these
weighted inner products; gradients need the transpose, which learnreg makes of it and tests. Assembled once, products
are exact in float64.
"""

import astra
import odl
import torch
from odl.applications import tomo

import learnreg as lr
from learnreg.operators import from_odl
from learnreg.regularizers import TotalVariation

SIZE, VIEWS = 48, 20
print(f"ODL {odl.__version__} with ASTRA {astra.__version__}")
space = odl.uniform_discr([-1, -1], [1, 1], (SIZE, SIZE), dtype="float32")
ray = tomo.RayTransform(space, tomo.parallel_beam_geometry(space, num_angles=VIEWS), impl="astra_cpu")
A = from_odl(ray, assembled=True)
print(A, f"weights {space.weighting.const:.4f} and {ray.range.weighting.const:.4f}")

# %%
# What the transpose is for: <A x, y> = <x, A^T y>. In float64 it holds to rounding.

generator = torch.Generator().manual_seed(0)
x = torch.randn(1, *A.domain_shape, generator=generator).double()
y = torch.randn(1, *A.range_shape, generator=generator).double()
mismatch = abs(float((A(x) * y).sum() - (x * A.adjoint(y)).sum())) / float(A(x).norm() * y.norm())
print(f"mismatch of the transpose: {mismatch:.0e}")
assert mismatch < 1e-12

# %%
# The Shepp-Logan phantom from 20 views, with 1 % of noise: ODL's filtered back-projection, and total variation.

phantom = odl.core.phantom.shepp_logan(space, modified=True)
clean = torch.tensor(phantom.asarray())[None].double()
b = A(clean[None])
b = b + 0.01 * float(b.std()) * torch.randn(b.shape, generator=generator).double()
analytic = tomo.fbp_op(ray)(b[0].numpy().astype("float32").squeeze())


def psnr(x: torch.Tensor) -> float:
    return float(-10 * (x - clean).square().mean().log10())


problem = lr.LowerLevelProblem(A, TotalVariation(3e-4, smoothing=1e-2), ridge=1e-4, constraint=lr.Nonnegative())
solution = lr.solve(problem, b, tolerance=5e-3)
assert solution.certified
images = {"ODL's filtered back-projection": torch.tensor(analytic.asarray())[None], "total variation": solution.x[0]}
quality = {name: psnr(x) for name, x in images.items()}
print({name: f"{value:.2f} dB" for name, value in quality.items()}, f"within {float(solution.error_bound):.0e}")
assert quality["total variation"] > quality["ODL's filtered back-projection"] + 5
figure = lr.plot.comparison({f"{name}, {quality[name]:.1f} dB": x for name, x in images.items()}, clean)
