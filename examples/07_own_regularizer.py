"""Your own regularizer
====================

Your own regularizer: an operator, a potential, and what its parameters do."""

import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.datasets import DenoisingPatches, natural_images
from learnreg.operators import Identity
from learnreg.regularizers import Regularizer, SaddleTerms


class SecondDifferences(lr.LinearOperator):
    """x[i-1] - 2 x[i] + x[i+1] along rows and columns, inside the image: (1, H, W) -> (2, H-2, W-2)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape, (2, shape[1] - 2, shape[2] - 2))

    def forward(self, x: Tensor) -> Tensor:
        middle, rows, columns = x[:, 0, 1:-1, 1:-1], x[:, 0, :, 1:-1], x[:, 0, 1:-1, :]
        down, right = rows[:, :-2] + rows[:, 2:], columns[:, :, :-2] + columns[:, :, 2:]
        return torch.stack([down - 2 * middle, right - 2 * middle], dim=1)

    def adjoint(self, y: Tensor) -> Tensor:
        pad = torch.nn.functional.pad
        down, right = y[:, 0], y[:, 1]
        result = pad(-2 * (down + right), (1, 1, 1, 1))
        result = result + pad(down, (1, 1, 0, 2)) + pad(down, (1, 1, 2, 0))
        return (result + pad(right, (0, 2, 1, 1)) + pad(right, (2, 0, 1, 1)))[:, None]

    def norm_bound(self) -> float:
        return 32.0**0.5  # each direction has norm at most 4; within 1.5 times the norm for all but tiny images


class SecondOrderVariation(Regularizer):
    """weight · sum sqrt(|D²x|² + smoothing²), with both numbers learned through their logarithms."""

    def __init__(self, weight: float = 0.02, smoothing: float = 0.01) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.tensor(weight).log())
        self.log_smoothing = nn.Parameter(torch.tensor(smoothing).log())

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        potential = lr.PseudoHuber(self.log_smoothing.double().exp(), self.log_weight.double().exp())
        return SaddleTerms(SecondDifferences(image_shape), potential)

    def parameter_roles(self) -> dict[str, str]:
        """What certificates need to know; a parameter without a role has gradients, but no certified ones."""
        return {"log_weight": "log_weight", "log_smoothing": "log_smoothing"}


patches = DenoisingPatches(natural_images("train"), sigma=25 / 255, patch=32)
b, x_true = (torch.stack(column) for column in zip(*(patches[i] for i in range(2)), strict=True))
regularizer = SecondOrderVariation()
problem = lr.LowerLevelProblem(Identity((1, 32, 32)), regularizer)

hg = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=1e-2)
print({name: float(gradient) for name, gradient in hg.gradient.items()})
print(f"certified: {hg.certified}, relative error at most {hg.relative_error_bound:.1e}")

objective = lr.BatchObjective(problem, b, lr.SquaredError(x_true), lr.Implicit())
descent = lr.AdaptiveDescent()
for _ in range(3):
    step = descent.step(objective)
    print(f"loss {step.loss:.4f}, decrease at least {step.decrease:.2e}, certified {step.certified}")
