"""A volume by cone beams
======================

A cube scanned by a cone of rays on a circle, from eight views, and total variation of the volume. The projector and its
transpose are computed ray by ray, without a matrix. Solved as a volume, each slice knows its neighbours.
"""

import torch

import learnreg as lr
from learnreg.operators import ConeBeam3D
from learnreg.regularizers import TotalVariation

SIDE, VIEWS = 32, 8

axis = torch.linspace(-1, 1, SIDE)
z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
body = (x**2 + y**2 + z**2 < 0.7).float()
organ = ((x - 0.25) ** 2 + (y + 0.1) ** 2 + 2 * z**2 < 0.12).float()
hole = ((x + 0.35) ** 2 + (y - 0.2) ** 2 + (z - 0.2) ** 2 < 0.05).float()
clean = (0.5 * body + 0.4 * organ - 0.4 * hole)[None]

A = ConeBeam3D(SIDE, VIEWS)
with torch.no_grad():
    b = A(clean[None])
    b = b + 0.03 * float(b.mean()) * torch.randn(b.shape, generator=torch.Generator().manual_seed(0))
print(f"{A}: {b[0].numel()} rays for {clean.numel()} voxels")

# %%
# The measurement, smoothed by a ridge alone, and with total variation.


def psnr(found: torch.Tensor) -> float:
    return float(-10 * (found - clean).square().mean().log10())


volumes = {}
for name, weight in {"ridge alone": 1e-7, "total variation": 1e-4}.items():
    R = TotalVariation(weight, smoothing=1e-2, dimensions=3)
    problem = lr.LowerLevelProblem(A, R, ridge=1e-3, constraint=lr.Nonnegative())
    solution = lr.solve(problem, b, tolerance=1e-2)
    volumes[name] = solution.x[0]
    print(f"{name}: {psnr(solution.x[0]):.2f} dB, within {float(solution.error_bound):.0e} ({solution.bound_kind})")
assert psnr(volumes["total variation"]) > psnr(volumes["ridge alone"]) + 3

# %%
# Three slices: across the axis of rotation, and along it, where cones of rays see least at top and bottom.

cuts = {"z = 0": (0, SIDE // 2), "y = 0": (0, slice(None), SIDE // 2), "x = 0": (0, ..., SIDE // 2)}
shown = {
    f"{name}, {cut}": volume[index]
    for name, volume in {**volumes, "clean": clean}.items()
    for cut, index in cuts.items()
}
figure = lr.plot.maps(shown, window=(0.0, 0.9), columns=3, label="attenuation")
