"""The one scalar whose parameter gradient is the hypergradient: <∇_x E(x; theta), X> with x and X detached.

In saddle form it is <K_theta X, y> + <K_theta x, Y> for parameters of K, y = f'(Kx) and Y = f''(Kx) K X, plus
<f'_theta(Kx), K X> for parameters of the potential, plus the data term and the ridge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.linear.samples import complexly, sum_samples
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.point import Point

__all__ = [
    "Responses",
    "SignedDuals",
    "cross_derivatives",
    "energy_gradient",
    "evaluate_pairing",
    "pairing_gradient",
    "parameter_gradient",
    "sum_gradients",
]


@dataclass(frozen=True)
class Responses:
    """What the gradient and its certificate share, detached: t = K x, V = K X, y = f'(t), Y = f''(t) V, and for a
    learnable data term or operator the residual A x - b and A X."""

    t: Tensor
    V: Tensor
    y: Tensor
    Y: Tensor
    residual: Tensor | None
    forward_X: Tensor | None


def pairing_gradient(point: Point) -> dict[str, Tensor]:
    """The hypergradient formed from exactly the point's x and X, in their dtype; the batch goes through in parts, which
    bounds the memory for responses. Counts as :func:`evaluate_pairing`."""
    return sum_gradients([evaluate_pairing(part)[0] for part, _ in point.parts()])


def sum_gradients(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The sum of the parts' gradients, rounded to their dtype once: parts may cancel."""
    return {name: torch.stack([g[name].double() for g in parts]).sum(0).to(g) for name, g in parts[0].items()}


@dataclass(frozen=True)
class SignedDuals:
    """What stands for f'(K x) and f''(K x) K X where f is an l1-norm: the signs of the responses, 0 where they vanish,
    and the dual points y and Y."""

    signs: Tensor
    y: Tensor
    Y: Tensor


def evaluate_pairing(point: Point, duals: SignedDuals | None = None) -> tuple[dict[str, Tensor], Responses]:
    """The hypergradient formed from exactly the point's x and X, in their dtype, with the responses it used; ``duals``
    of potentials that are not differentiable.

    Counts K x, K X and, when K has learnable parameters, the two applications of its backward pass.
    """
    frozen, instance, x, X, b = point.frozen, point.instance, point.x.detach(), point.X.detach(), point.b.detach()
    counter = instance.counter
    data_side = frozen.learns_quadratic
    with torch.enable_grad():
        terms = point.terms
        latent = terms.latent
        potential, fixed = terms.potential.to(x.dtype), instance.potential.to(x.dtype)
        # Both at once: operators cast their parameters to the dtype of the images, and autograd rounds the gradient to
        # that of the parameters behind each cast, where the shares of x and X may have cancelled.
        t, V = terms.operator(torch.cat([x, X])).split(x.shape[0])
        counter.applications += 2
        t_fixed, V_fixed = t.detach().contiguous(), V.detach().contiguous()
        if duals is None:
            with torch.no_grad():
                y = fixed.grad_into(t_fixed, torch.empty_like(t_fixed))
                Y = fixed.bent(fixed.linearised(t_fixed), V_fixed)
            outputs, weights = [potential.grad(t_fixed)], [V_fixed]
        else:
            y, Y = duals.y, duals.Y
            outputs, weights = [potential.weight * duals.signs], [V_fixed]
        if t.requires_grad:
            outputs, weights = [*outputs, V, t], [*weights, y, Y]
            counter.applications += 2
        residual = forward_X = None
        if data_side:
            both = torch.cat([latent.image(x), latent.image(X)])
            forward_x, forward_X = frozen.operator(both).split(x.shape[0])
            residual = forward_x - b.to(x.dtype)
            outputs.append((point.data_term.slope(forward_x, b.to(x.dtype)) * forward_X).sum())
            weights.append(torch.ones_like(outputs[-1]))
            residual, forward_X = residual.detach(), forward_X.detach()
        if isinstance(frozen.ridge, Tensor):
            outputs.append(frozen.ridge * (latent.image(x) * latent.image(X)).sum())
            weights.append(torch.ones_like(outputs[-1]))
        outputs.append(latent.linear(X))
        weights.append(torch.ones_like(outputs[-1]))
        learned = [(o, w) for o, w in zip(outputs, weights, strict=True) if o.requires_grad]
        gradient = parameter_gradient(frozen, learned)
    return gradient, Responses(t_fixed, V_fixed, y, Y, residual, forward_X)


def cross_derivatives(point: Point, at: Tensor) -> Iterator[Tensor]:
    """∂ ∇E(x; theta) / ∂ theta_j for every entry of every parameter in turn, (batch, *domain) each: what the pairing is
    the inner product of with X. For images alone. ``at``: ``Potential.linearised`` of K x. Counts K x and, when K has
    learnable parameters, K X; and of each entry an adjoint and, in that case, two applications of its backward pass."""
    frozen, instance, x = point.frozen, point.instance, point.x.detach()
    with torch.enable_grad():
        X = torch.zeros_like(x, requires_grad=True)
        terms = point.terms
        t = terms.operator(x)
        instance.counter.applications += 1
        t_fixed = t.detach().contiguous()
        # Cotangents to differentiate by: of f'_theta(Kx), and of K_theta x.
        u, w = (torch.zeros_like(t_fixed, requires_grad=True) for _ in range(2))
        learned = [(terms.potential.to(x.dtype).grad(t_fixed), u)]
        if t.requires_grad:
            learned += [(t, w), (terms.operator(X), instance.potential.grad(t_fixed))]
            instance.counter.applications += 1
        scalars = []
        if not frozen.data_term.dualised:
            forward_x, forward_X = frozen.operator(torch.cat([x, X])).split(x.shape[0])
            slope = point.data_term.slope(forward_x, point.b.detach().to(x.dtype))
            scalars.append((slope * forward_X).sum())
        if isinstance(frozen.ridge, Tensor):
            scalars.append(frozen.ridge * (x * X).sum())
        learned += [(scalar, torch.ones_like(scalar)) for scalar in scalars]
        found = parameter_gradient(frozen, [(o, c) for o, c in learned if o.requires_grad], create_graph=True)
        for gradient in found.values():
            for entry in gradient.flatten():
                yield _cross_derivative(instance, at, entry, (u, w, X), 2 if t.requires_grad else 0)


def _cross_derivative(
    instance: Instance, at: Tensor, entry: Tensor, variables: tuple[Tensor, Tensor, Tensor], applications: int
) -> Tensor:
    """K^T (∂f'_theta(Kx) + f''(Kx) ∂K x) + the rest, from one entry of the gradient, which is linear in these."""
    if not entry.requires_grad:
        return torch.zeros_like(variables[2])
    grad = torch.autograd.grad
    own, moved, rest = grad(entry, variables, retain_graph=True, allow_unused=True, materialize_grads=True)
    instance.counter.applications += applications
    with torch.no_grad():
        return rest + instance.adjoint(own + instance.potential.bent(at, moved))


def energy_gradient(point: Point, states: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """∂_theta of sum_k weights_k E(states_k; theta) over the batch of the point's data, at fixed states (count, batch,
    ...), with weights (count, 1), or (count, batch) of each sample; of complex ones the real part, E continued as a
    holomorphic function. What cancels between the states does so in their precision. Counts an application for each
    state, and that of the backward pass of a learnable K."""
    weights = weights.expand(states.shape[:2])
    return sum_gradients([_energy_gradient(part, states[:, i], weights[:, i]) for part, i in point.parts()])


def _energy_gradient(point: Point, states: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Of a part of the batch."""
    frozen, instance, count = point.frozen, point.instance, len(states)
    index, v = torch.arange(len(point.b), device=states.device).repeat(count), states.detach().flatten(0, 1)
    with torch.enable_grad():
        terms = point.terms
        latent, potential = terms.latent, terms.potential.select(index).to(instance.q.dtype)
        t = complexly(terms.operator, v)
        energies = potential.continued(t) if t.is_complex() else potential.value(t)
        energies = energies + latent.value(v)
        if frozen.learns_quadratic:
            response, b = complexly(frozen.operator, latent.image(v)), point.b.detach().to(instance.q.dtype)[index]
            energies = energies + point.data_term.select(index).energy(response, b)
        if isinstance(frozen.ridge, Tensor):
            energies = energies + 0.5 * frozen.ridge * sum_samples(latent.image(v) ** 2)
        total = (energies.reshape(count, -1) * weights).sum().real
        instance.counter.applications += count * (2 if t.requires_grad else 1)
        learned = [(total, torch.ones_like(total))] if total.requires_grad else []
        return parameter_gradient(frozen, learned)


def parameter_gradient(
    frozen: FrozenProblem, learned: list[tuple[Tensor, Tensor]], create_graph: bool = False
) -> dict[str, Tensor]:
    """The gradient of sum <output, cotangent> by parameter; through the originals, too, which foreign modules use."""
    clones = list(frozen.parameters.values())
    originals = [torch.zeros_like(p, requires_grad=True) if p.is_inference() else p for p in frozen.originals.values()]
    grads: tuple[Tensor | None, ...] = (None,) * (2 * len(clones))
    if clones and learned:
        targets, cotangents = zip(*learned, strict=True)
        inputs = [*clones, *originals]
        grads = torch.autograd.grad(
            targets, inputs, cotangents, allow_unused=True, retain_graph=True, create_graph=create_graph
        )
    found = {}
    for k, (name, p) in enumerate(frozen.parameters.items()):
        parts = [g if create_graph else g.detach() for g in (grads[k], grads[k + len(clones)]) if g is not None]
        found[name] = sum(parts[1:], parts[0]) if parts else torch.zeros_like(p)
    return found
