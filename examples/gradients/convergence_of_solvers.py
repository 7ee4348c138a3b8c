"""How fast do solvers converge, and when do they know?
====================================================

The same lower-level problem for three solvers: L-BFGS, Newton's method with conjugate gradients, and the primal-dual
method PDHG. Two problems, of which one is well conditioned and the other one is not. What counts is the number of
operator applications until the bound of the error, which each of them computes, is below a tolerance.
"""

import torch

import learnreg as lr
from learnreg.datasets import natural_images
from learnreg.operators import Blur, Identity
from learnreg.regularizers import FieldsOfExperts

torch.manual_seed(0)
clean = natural_images("test")["camera"][None, :, 100:132, 220:252].double()
line = torch.exp(-0.5 * (torch.arange(-2.0, 3.0) / 1.2) ** 2)
operators = {
    "denoising": (Identity((1, 32, 32)), 25 / 255, 0.15),
    "deblurring": (Blur(torch.outer(line, line).double() / line.sum() ** 2, (1, 32, 32), "reflect"), 2 / 255, 2e-3),
}
solvers = {
    "L-BFGS": lr.solvers.LBFGS(check_every=1),
    "Newton-CG": lr.solvers.NewtonCG(check_every=1),
    "PDHG": lr.solvers.PDHG(check_every=5),
}
TOLERANCE = 1e-5

figures, counts = {}, {}
for task, (A, sigma, weight) in operators.items():
    b = A(clean) + sigma * torch.randn_like(clean)
    R = weight * FieldsOfExperts(filters=8, size=3, potential=lr.PseudoHuber(smoothing=1e-2))
    problem = lr.LowerLevelProblem(A, R.double(), ridge=0.0 if task == "denoising" else 1e-3)
    found = {name: lr.solve(problem, b, TOLERANCE, solver=solver) for name, solver in solvers.items()}
    assert all(solution.certified for solution in found.values())
    counts[task] = {name: solution.operator_applications for name, solution in found.items()}
    print(task, counts[task])
    figures[task] = lr.plot.convergence(found, TOLERANCE)
    figures[task].axes[0].title.set_text(task)

# %%
# They agree within their bounds, which is what bounds are for.

x = [solution.x for solution in found.values()]
distance = float((x[0] - x[2]).square().mean().sqrt())
print(f"L-BFGS and PDHG differ by {distance:.1e}")
assert distance <= 2 * TOLERANCE

# %%
# Denoising: nobody needs many applications. Deblurring: the condition number is larger by orders of magnitude.

assert counts["deblurring"]["PDHG"] > 3 * counts["denoising"]["PDHG"]
denoising, deblurring = figures.values()
