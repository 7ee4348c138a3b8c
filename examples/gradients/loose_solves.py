"""What loose solves do to gradients
=================================

Bilevel learning differentiates a reconstruction with respect to what was learned. Two solves stand in the way, and
neither is exact: the reconstruction x, and the adjoint state X, the solution of a linear system at x. Here both come
from plain code: torch's L-BFGS and conjugate gradients, as many steps of one as of the other. The image looks finished
long before the gradient is right; nothing in that code says so. :func:`learnreg.certify` does.
"""

import torch
from matplotlib.figure import Figure

import learnreg as lr
from learnreg.datasets import natural_images
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts

# %%
# A lower-level problem: what the reconstruction minimises, ½‖x - b‖² + R(x). The upper-level loss compares the
# reconstruction with the clean image.

torch.manual_seed(0)
clean = natural_images("test")["camera"][None, :, 100:148, 220:268].double()
noisy = clean + 25 / 255 * torch.randn_like(clean)
R = 0.15 * FieldsOfExperts(filters=8, size=3, potential=lr.PseudoHuber(smoothing=1e-3))
problem = lr.LowerLevelProblem(Identity((1, 48, 48)), R)
loss = lr.SquaredError(clean)


# %%
# Plain code: torch's L-BFGS on the energy, then conjugate gradients for H X = -∇loss.


def plain_solve(steps: int) -> torch.Tensor:
    x = noisy.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([x], max_iter=steps, max_eval=10 * steps, tolerance_grad=0, tolerance_change=0,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def energy() -> torch.Tensor:
        optimizer.zero_grad()
        value = problem.energy(x, noisy).sum()
        value.backward(inputs=[x])
        return value

    optimizer.step(energy)
    return x.detach()


def plain_adjoint(x: torch.Tensor, steps: int) -> torch.Tensor:
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.energy(point, noisy).sum(), point, create_graph=True)
    X, r = torch.zeros_like(x), -loss.gradient(x)
    p = r.clone()
    for _ in range(steps):
        Hp = torch.autograd.grad(gradient, point, p, retain_graph=True)[0]
        a = (r * r).sum() / (p * Hp).sum()
        X, new = X + a * p, r - a * Hp
        p, r = new + (new * new).sum() / (r * r).sum() * p, new
    return X


# %%
# The truth, for comparison: a hypergradient with a certified error a million times smaller than itself.

exact = lr.hypergradient(problem, noisy, loss, tolerance=1e-6)
assert exact.certified
true = torch.cat([g.flatten() for g in exact.gradient.values()])


def psnr(x: torch.Tensor) -> float:
    return float(-10 * (x - clean).square().mean().log10())


counts = [2, 4, 8, 16, 32, 64, 128]
rows = []
for steps in counts:
    x = plain_solve(steps)
    judged = lr.certify(problem, noisy, loss, x, plain_adjoint(x, steps))
    gradient = torch.cat([g.flatten() for g in judged.gradient.values()])
    error = float((gradient - true).norm() / true.norm())
    rows.append((steps, psnr(x), error, judged.gradient_error_bound / float(true.norm())))
    print("{:4d} steps: {:.2f} dB, gradient wrong by {:8.2%}, certified at most {:8.2%}".format(*rows[-1]))

# %%
# After eight steps the image has its final quality, and the gradient is wrong by its own length; 32 steps make it
# right. Every bound holds, and is a few per cent above the error.

assert all(error <= bound <= 1.1 * error + 1e-4 for _, _, error, bound in rows)
finished, settled = (next(row for row in rows if row[0] == n) for n in (8, 32))
assert abs(finished[1] - rows[-1][1]) < 0.2
assert finished[2] > 0.9
assert settled[2] < 0.05

with lr.plot.paper_style():
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(counts, [row[1] for row in rows], "o-", color=lr.plot.COLOURS[0])
    left.axhline(psnr(noisy), color="#555555", lw=0.8, ls=":")
    left.text(counts[-1], psnr(noisy), "noisy image", ha="right", va="bottom", color="#555555")
    left.set(title="What one looks at", ylabel="PSNR of the reconstruction, dB")
    right.plot(
        counts, [row[3] for row in rows], "^-", color=lr.plot.COLOURS[1], label="certified bound", mfc="none", ms=9
    )
    right.plot(counts, [row[2] for row in rows], "o-", color=lr.plot.COLOURS[0], label="true error")
    right.axhline(1.0, color="#555555", lw=0.8, ls=":")
    right.text(counts[-1], 1.0, "as long as the gradient itself", ha="right", va="bottom", color="#555555")
    right.set(title="What training uses", ylabel="relative error of the hypergradient", yscale="log")
    right.legend()
    for axes in (left, right):
        axes.set(xlabel="steps of both solves", xscale="log", xticks=counts, xticklabels=counts)
        axes.minorticks_off()
    figure.savefig("loose_solves.png", dpi=110)
