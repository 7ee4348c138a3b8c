"""Implicit differentiation as published in github.com/johertrich/LearnedRegularizers, called from outside.

Its function ``bilevel_training`` runs for one training step on one batch with a step size of zero: nmAPG for the lower
level, MINRES for the adjoint equation (mode "IFT") or none (Jacobian-free, mode "JFB"), with its own stopping rules.
The hypergradient is what it leaves in ``.grad``.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NAME", "LearnedRegularizers", "available"]

NAME = "LearnedRegularizers"
Theta = dict[str, Tensor]
Mode = Literal["IFT", "JFB"]
_MODULES = ("deepinv.optim.data_fidelity", "deepinv.physics", "evaluation", "training_methods")


class _Missing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty modules in place of torchvision, which the package imports for data sets and network weights only."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        if name.partition(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _Empty(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Its progress bars and prints go nowhere."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def available(peers: str | None) -> str:
    """'' when the checkout PEERS/LearnedRegularizers (or PEERS itself) can be imported, else the reason. Puts it on
    sys.path."""
    if peers is None:
        return "no --peers DIR"
    roots = [p for p in (Path(peers, NAME), Path(peers)) if (p / "training_methods" / "bilevel_training.py").is_file()]
    if not roots:
        return f"no checkout of {NAME} in {peers}"
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_Missing())
    if str(roots[0]) not in sys.path:
        sys.path.insert(0, str(roots[0]))
    try:
        with _silence():
            for module in _MODULES:
                importlib.import_module(module)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


class FieldOfExperts(nn.Module):
    """Energy ``g`` and gradient ``grad`` as its solvers expect them; closed forms, as in its own ridge regularizers."""

    def __init__(self, theta: Theta) -> None:
        super().__init__()
        self.filters = nn.Parameter(theta["filters"].detach().clone())
        self.log_weights = nn.Parameter(theta["log_weights"].detach().clone())
        self.log_smoothing = nn.Parameter(theta["log_smoothing"].detach().clone())

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        t = F.conv2d(x, self.filters[:, None])
        smoothing = self.log_smoothing.exp()[:, None, None]
        return t, self.log_weights.exp()[:, None, None], smoothing, (t * t + smoothing**2).sqrt()

    def g(self, x: Tensor) -> Tensor:
        _, weight, smoothing, root = self._parts(x)
        return (weight * (root - smoothing)).sum((1, 2, 3))

    def grad(self, x: Tensor, get_energy: bool = False) -> Any:
        t, weight, smoothing, root = self._parts(x)
        gradient = F.conv_transpose2d(weight * t / root, self.filters[:, None])
        return ((weight * (root - smoothing)).sum((1, 2, 3)), gradient) if get_energy else gradient


class _FixedNoise(nn.Module):
    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise, self.rng = noise, None

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return x + self.noise


class LearnedRegularizers:
    """Its lower-level solver and its hypergradient for one denoising batch.

    step_size: initial step of nmAPG, which its line search and Barzilai-Borwein rule change from the first iteration.
    """

    def __init__(
        self,
        theta: Theta,
        b: Tensor,
        x_true: Tensor,
        upper_loss: Callable[[Tensor, Tensor], Tensor],
        step_size: float = 1e-1,
        max_iterations: int = 2000,
    ) -> None:
        from deepinv.optim.data_fidelity import L2
        from deepinv.physics import Denoising

        self.theta, self.b, self.x_true, self.upper_loss = theta, b, x_true, upper_loss
        self.step_size, self.max_iterations = step_size, max_iterations
        self.physics, self.data_fidelity = Denoising(noise_model=_FixedNoise(b - x_true)), L2()

    def lower_level(self, tolerance: float) -> tuple[Tensor, int]:
        """Its lower-level solution (tolerance: relative change of the iterates) and the iterations it took."""
        from evaluation import reconstruct_nmAPG

        model = FieldOfExperts(self.theta)
        x, stats = reconstruct_nmAPG(
            self.b,
            self.physics,
            self.data_fidelity,
            model,
            1.0,
            self.step_size,
            self.max_iterations,
            tolerance,
            x_init=self.b,
            return_stats=True,
        )
        return x, int(stats["steps"]) + 1

    def hypergradient(self, tolerance: float, minres_tolerance: float = 1e-6, mode: Mode = "IFT") -> Theta:
        """The gradient that one step of its training computes."""
        import training_methods

        model = FieldOfExperts(self.theta)
        with _silence():
            training_methods.bilevel_training(
                model,
                self.physics,
                self.data_fidelity,
                1.0,
                [self.x_true],
                [],
                epochs=1,
                mode=mode,
                lower_level_step_size=self.step_size,
                lower_level_max_iter=self.max_iterations,
                lower_level_tol_train=tolerance,
                minres_max_iter=self.max_iterations,
                minres_tol=minres_tolerance,
                lr=0.0,
                device="cpu",
                validation_epochs=-1e9,  # no validation
                upper_loss=self.upper_loss,
            )
        return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
