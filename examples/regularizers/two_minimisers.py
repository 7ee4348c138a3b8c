"""Two minimisers, each with its ball
==================================

A regularizer with concave parts wants edges either flat or whole. The energy has several local minimisers then, and
where a solver ends depends on its start. With ``minimiser="local"`` a certificate speaks of one of them: a ball around
the image holds exactly one minimiser, and the error bound is the distance to that one. Balls that do not meet hold
different minimisers.
"""

import torch

import learnreg as lr
from learnreg.operators import Identity
from learnreg.regularizers import ImportedRidge

SIDE, SIGMA = 24, 0.03

# %%
# Differences of neighbours, each with a potential whose second derivative is 6 up to a difference of 0.08, -2 up to
# 0.32, and 0 beyond: near zero it smooths, beyond it leaves edges as they are.

differences = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
differences[:, 0, 1, 1] = -1.0
differences[0, 0, 1, 2] = differences[1, 0, 2, 1] = 1.0
bends = torch.tensor([[-2.0, -2.0, -2.0, 6.0, 6.0, -2.0, -2.0, -2.0]], dtype=torch.float64)
R = ImportedRidge([differences], bends, distance=0.08, factor=0.08, boundary="reflect")
print(f"R is convex: {R.convex}")

# %%
# Squares of height 0.15, 0.3, 0.45 and 0.6. The measurement is the same for both starts: itself, and a grey image.

clean = torch.full((1, 1, SIDE, SIDE), 0.2, dtype=torch.float64)
for k, (top, left) in enumerate(((2, 2), (2, 13), (13, 2), (13, 13))):
    clean[..., top : top + 9, left : left + 9] += 0.15 * (k + 1)
b = clean + SIGMA * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).double()
problem = lr.LowerLevelProblem(Identity((1, SIDE, SIDE)), R, minimiser="local")
found = {
    "from the measurement": lr.solve(problem, b, tolerance=1e-6, start=b),
    "from a grey image": lr.solve(problem, b, tolerance=1e-6, start=torch.full_like(b, float(b.mean()))),
}
for name, solution in found.items():
    with torch.no_grad():
        energy = float(problem.energy(solution.x, b))
    print(
        f"{name}: energy {energy:.4f}, exactly one minimiser within {float(solution.radius):.1e}, "
        f"at a distance of at most {float(solution.error_bound):.0e} (root mean square), {solution.bound_kind}"
    )
    assert solution.locally_certified
first, second = found.values()
distance = float((first.x - second.x).norm())
print(f"distance of both images {distance:.2f}, radii {float(first.radius):.1e} and {float(second.radius):.1e}")
assert distance > float(first.radius + second.radius)

comparison = lr.plot.comparison(
    {"measured": b[0], **{name: solution.x[0] for name, solution in found.items()}}, clean[0], measured="measured"
)
difference = lr.plot.maps({"difference of the two minimisers": (first.x - second.x)[0]}, signed=True)
