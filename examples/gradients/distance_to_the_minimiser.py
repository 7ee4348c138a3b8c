"""How far is an image from its minimiser?
=======================================

A solver stops somewhere. Asked for a tolerance, :func:`learnreg.solve` stops where the root-mean-square distance to the
exact minimiser is certainly below it. Maps of the true error, known here from a solve to rounding, show what is left.
"""

import torch

import learnreg as lr
from learnreg.datasets import natural_images
from learnreg.operators import Identity
from learnreg.regularizers import TotalVariation

torch.manual_seed(0)
clean = natural_images("test")["camera"][None, :, 70:134, 215:279].double()
noisy = clean + 25 / 255 * torch.randn_like(clean)
problem = lr.LowerLevelProblem(Identity((1, 64, 64)), TotalVariation(weight=0.07, smoothing=1e-2))
exact = lr.solve(problem, noisy, tolerance=1e-8, solver="newton-cg")
assert exact.certified

# %%
# Three tolerances, in units of the image, whose values are in [0, 1]. L-BFGS looks for a bound after every step here,
# not after every fifth.

errors, images = {}, {"noisy": noisy[0]}
for tolerance in (0.03, 0.003, 0.0003):
    solution = lr.solve(problem, noisy, tolerance=tolerance, solver=lr.solvers.LBFGS(check_every=1))
    error = solution.x - exact.x
    true, bound = float(error.square().mean().sqrt()), float(solution.error_bound)
    print(f"asked {tolerance}: true {true:.1e}, certified {bound:.1e}, {solution.operator_applications} applications")
    assert solution.certified
    assert true <= bound <= tolerance
    images[f"tolerance {tolerance}"] = solution.x[0]
    errors[f"true {true:.1e} ≤ bound {bound:.1e}"] = error[0]

# %%
# By eye all three are the same image.

solutions = lr.plot.comparison({**images, "the minimiser": exact.x[0]}, measured="noisy")

# %%
# Their distance to the minimiser, each on a scale of its own. The certificate bounds its root mean square.

maps = lr.plot.maps(errors, signed=True, label="image − minimiser")
# sphinx_gallery_thumbnail_number = 2
