"""A proxy of the lower level: a network that predicts its solution from parameters and data.

    x^ = network(theta, b),    g = ∂_theta ell(network(theta, b))        (1)

Source: Chen, Chen, Ma, Liu and Liu, Gradient-based bi-level optimization for deep learning: a survey (2022), the proxy
update; MacKay, Vicol, Lorraine, Duvenaud and Grosse, Self-tuning networks (2019).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from learnreg.errors import ConfigError, ShapeError
from learnreg.hypergradients.base import Goal, HypergradientMethod, Outcome
from learnreg.linear.arguments import check_type, real_number, whole_number
from learnreg.lower_level.elsewhere import is_nonnegative, with_parameters
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.point import Point
from learnreg.lower_level.problem import LowerLevelProblem, freeze
from learnreg.result import Status
from learnreg.solvers.solve import solve

__all__ = ["Proxy"]

Pair = tuple[Tensor, Tensor]


class Proxy(HypergradientMethod):
    """The gradient of the loss of a predicted solution, by backpropagation through the network that predicts it.

    Parameters
    ----------
    network: called as ``network(theta, b)`` with theta (numbers,), all learned parameters flattened one after the other
        in the order of ``problem.learnable()``, and b (batch, *range_shape), both in the network's dtype; returns
        images (batch, *domain_shape). It is used in the mode it is in.

    No lower-level problem is solved. The network stands for the map from theta to the solution, and its derivative in
    theta for that of the solution: both are as wrong as it is, near the parameters it was fitted at and elsewhere more
    so. The certificate says how wrong, by the residual of what it predicts, which costs what solving from there costs;
    ``certificate="none"`` costs nothing and says nothing. Predictions outside a constraint are projected onto it.

    Raises
    ------
    ConfigError: a network that is no module; when it runs, one whose prediction does not depend on theta, or a lower
        level with latent variables. ShapeError: predictions of another shape.

    Examples
    --------
    >>> class Network(torch.nn.Module):  # untrained; method.fit trains it
    ...     def forward(self, theta, b):
    ...         return b * theta.mean().sigmoid()
    >>> method = lr.Proxy(Network().double())
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), lr.regularizers.FieldsOfExperts(2, 3))
    >>> b, loss = torch.rand(1, 1, 8, 8), lr.SquaredError(torch.zeros(1, 1, 8, 8))
    >>> lr.hypergradient(problem, b, loss, method=method, tolerance=0.1).certified
    True
    """

    name = "proxy"
    miss = Status.METHOD_ERROR

    def __init__(self, network: nn.Module) -> None:
        check_type(network, nn.Module, "Proxy(network)", "a torch.nn.Module called as network(theta, b)")
        self.network = network

    def __repr__(self) -> str:
        return f"Proxy({type(self.network).__name__})"

    def fits(self, instance: Instance) -> bool:
        return not instance.latent.channels

    def run(self, start: Point, goal: Goal) -> Outcome:
        if not self.fits(start.instance):
            raise ConfigError("Proxy: it predicts images, not latent variables; use Implicit().")
        parameters = start.frozen.parameters
        with torch.inference_mode(False), torch.enable_grad():
            theta = self._flat(parameters).requires_grad_()
            x = start.instance.box.prox(self._predicted(theta, start.b, start.x.shape).to(start.x))
            value = start.loss.value(x)
            if not x.requires_grad:
                raise ConfigError(f"{self!r}: what the network predicts does not depend on theta.")
            (slope,) = torch.autograd.grad(value, theta, materialize_grads=True)
        parts = torch.split(slope, [p.numel() for p in parameters.values()])
        gradient = {
            name: part.reshape(p.shape).to(p) for (name, p), part in zip(parameters.items(), parts, strict=True)
        }
        return Outcome(x.detach(), None, gradient)

    def fit(
        self,
        problem: LowerLevelProblem | FrozenProblem,
        b: Tensor,
        *,
        radius: float = 0.1,
        draws: int = 32,
        updates: int = 1000,
        step_size: float = 1e-3,
        tolerance: float = 1e-3,
        seed: int = 0,
    ) -> float:
        """Fit the network to certified solutions at random parameters around the present ones.

        Parameters
        ----------
        b: measurements (batch, *range_shape), solved at each of the ``draws``, an eighth of which are held out.
        radius: standard deviation of the parameters, relative to the root mean square of each (absolute where it is 0).
        updates, step_size: of Adam, each on one draw. tolerance: that of :func:`learnreg.solve`.

        Returns the network's error on the draws held out, relative to the solutions: an *estimate* of its error there.

        Raises
        ------
        ConfigError: numbers out of range. SolverError: a solution that misses the tolerance.
        """
        real_number(radius, "Proxy.fit(radius)", above=0.0)
        whole_number(draws, "Proxy.fit(draws)", least=2)
        whole_number(updates, "Proxy.fit(updates)", least=1)
        real_number(step_size, "Proxy.fit(step_size)", above=0.0)
        pairs = self._solutions(freeze(problem), b, radius, draws, tolerance, torch.Generator().manual_seed(seed))
        kept = max(1, draws // 8)
        optimizer = torch.optim.Adam(self.network.parameters(), step_size)
        with torch.inference_mode(False), torch.enable_grad():
            for update in range(updates):
                optimizer.zero_grad()
                self._misfit(pairs[kept + update % (draws - kept)], b).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        with torch.no_grad():
            return float(torch.stack([self._misfit(pair, b) for pair in pairs[:kept]]).mean().sqrt())

    def _solutions(
        self,
        frozen: FrozenProblem,
        b: Tensor,
        radius: float,
        draws: int,
        tolerance: float,
        generator: torch.Generator,
    ) -> list[Pair]:
        """Parameters, flat, and solutions there."""

        def moved(name: str, p: Tensor) -> Tensor:
            size = float(p.double().square().mean().sqrt()) or 1.0
            value = p + radius * size * torch.randn(p.shape, dtype=p.dtype, generator=generator).to(p.device)
            return value.clamp_min(0.0) if is_nonnegative(name) else value

        def solved(at: FrozenProblem) -> Pair:
            theta = self._flat(at.parameters)
            return theta, solve(at, b, tolerance, on_failure="raise").x.detach().to(theta.dtype)

        values = ({name: moved(name, p.detach()) for name, p in frozen.parameters.items()} for _ in range(draws))
        return [with_parameters(frozen, at, solved) for at in values]

    def _misfit(self, pair: Pair, b: Tensor) -> Tensor:
        """Squared error of a prediction over the solution's square."""
        theta, x = pair
        return (self._predicted(theta, b, x.shape) - x).square().sum() / x.square().sum().clamp_min(1e-30)

    def _flat(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """theta, in the network's dtype."""
        flat = [p.detach().flatten() for p in parameters.values()]
        theta = torch.cat(flat) if flat else torch.zeros(0)
        like = next(self.network.parameters(), theta)
        return theta.to(like.dtype)

    def _predicted(self, theta: Tensor, b: Tensor, shape: torch.Size) -> Tensor:
        x = self.network(theta, b.detach().to(theta.dtype))
        if not isinstance(x, Tensor) or x.shape != shape:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(f"{self!r}: the network returned {got}, expected images {tuple(shape)}.")
        return x
