"""A regularizer of your own: second differences
=============================================

Total variation turns ramps into stairs. Second differences do not: an operator, a potential and the roles of two
parameters are all it takes, and every solver, bound and training applies. Beside it total generalised variation, which
the library has.
"""

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import learnreg as lr
from learnreg.operators import Identity
from learnreg.regularizers import LearnedTotalGeneralizedVariation, Regularizer, SaddleTerms, TotalVariation

SIDE, SIGMA = 48, 0.08


class SecondDifferences(lr.LinearOperator):
    """x[i-1] - 2 x[i] + x[i+1] along rows and columns, inside the image: (1, H, W) -> (2, H-2, W-2)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape, (2, shape[1] - 2, shape[2] - 2))

    def forward(self, x: Tensor) -> Tensor:
        middle, rows, columns = x[:, 0, 1:-1, 1:-1], x[:, 0, :, 1:-1], x[:, 0, 1:-1, :]
        down, right = rows[:, :-2] + rows[:, 2:], columns[:, :, :-2] + columns[:, :, 2:]
        return torch.stack([down - 2 * middle, right - 2 * middle], dim=1)

    def adjoint(self, y: Tensor) -> Tensor:
        pad = nn.functional.pad
        down, right = y[:, 0], y[:, 1]
        result = pad(-2 * (down + right), (1, 1, 1, 1))
        result = result + pad(down, (1, 1, 0, 2)) + pad(down, (1, 1, 2, 0))
        return (result + pad(right, (0, 2, 1, 1)) + pad(right, (2, 0, 1, 1)))[:, None]

    def norm_bound(self) -> float:
        return 32.0**0.5  # each direction has norm at most 4; within 1.5 times the norm for all but tiny images


class SecondOrderVariation(Regularizer):
    """weight · sum sqrt(|D²x|² + smoothing²), with both numbers learned through their logarithms."""

    def __init__(self, weight: float = 0.1, smoothing: float = 0.01) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.tensor(weight).log())
        self.log_smoothing = nn.Parameter(torch.tensor(smoothing).log())

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        potential = lr.PseudoHuber(self.log_smoothing.double().exp(), self.log_weight.double().exp())
        return SaddleTerms(SecondDifferences(image_shape), potential)

    def parameter_roles(self) -> dict[str, str]:
        """What certificates need to know; a parameter without a role has gradients, but no certified ones."""
        return {"log_weight": "log_weight", "log_smoothing": "log_smoothing"}


# %%
# Is it what it has to be? The library's acceptance checks, which the test suite of a package of yours can run, too.

lr.testing.check_regularizer(SecondOrderVariation(), (1, 12, 12))

# %%
# Two roofs and a ramp, all slopes, with one edge. Each regularizer learns its weight from the first half of the noise
# by certified descent, and denoises the same scene with other noise.

t = torch.arange(SIDE) / SIDE
roof = (0.2 + 0.6 * (1 - (4 * t - 1).abs()).clamp_min(0)).expand(SIDE, SIDE)
ramp = (0.3 + 0.6 * t)[:, None].expand(SIDE, SIDE)
clean = torch.where(t[None] < 0.5, roof, ramp)[None, None].double()
noise = SIGMA * torch.randn(2, *clean.shape, generator=torch.Generator().manual_seed(0)).double()

regularizers = {
    "total variation": TotalVariation(0.1, smoothing=1e-2).double(),
    "second differences": SecondOrderVariation(0.3).double(),
    "total generalised variation": LearnedTotalGeneralizedVariation(positions=1, size=3, smoothing=1e-2).double(),
}
images = {"noisy": (clean + noise[1])[0]}
for name, R in regularizers.items():
    problem = lr.LowerLevelProblem(Identity((1, SIDE, SIDE)), R)
    objective = lr.BatchObjective(problem, clean + noise[0], lr.SquaredError(clean))
    descent = lr.AdaptiveDescent()
    steps = [descent.step(objective) for _ in range(4)]
    solution = lr.solve(problem, clean + noise[1], tolerance=1e-3)
    images[name] = solution.x[0].detach()
    print(f"{name}: loss {steps[0].loss:.2f} -> {steps[-1].loss:.2f}, every step certified", end=" ")
    print(all(step.certified for step in steps), solution.certified)


def psnr(x: Tensor) -> float:
    return float(-10 * (x - clean[0]).square().mean().log10())


quality = {name: psnr(x) for name, x in images.items()}
print({name: f"{value:.2f} dB" for name, value in quality.items()})
assert quality["second differences"] > quality["total variation"] + 0.5
assert quality["total generalised variation"] > quality["total variation"] + 2
comparison = lr.plot.comparison(
    {f"{name}, {quality[name]:.1f} dB": x for name, x in images.items()},
    clean[0],
    measured=f"noisy, {quality['noisy']:.1f} dB",
)

# %%
# One row of the image: stairs, and none.

with lr.plot.paper_style():
    profile = Figure(figsize=(9, 2.8), layout="constrained")
    for axes, (name, x), colour in zip(
        profile.subplots(1, 3, sharey=True), list(images.items())[1:], lr.plot.COLOURS, strict=False
    ):
        axes.plot(clean[0, 0, 20], color="black", lw=1.0, label="clean")
        axes.plot(x[0, 20], color=colour)
        axes.set(title=name, xlabel="column of row 20")
