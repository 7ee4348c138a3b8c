"""The one scalar whose parameter gradient is the hypergradient: <∇_x E(x; theta), X> with x and X detached.

In saddle form it is <K_theta X, y> + <K_theta x, Y> for parameters of K, y = f'(Kx) and Y = f''(Kx) K X, plus
<f'_theta(Kx), K X> for parameters of the potential, plus the data term and the ridge.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.linear.samples import sum_samples
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.point import Point

__all__ = ["Responses", "energy_gradient", "evaluate_pairing", "pairing_gradient", "sum_gradients"]


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


def evaluate_pairing(point: Point) -> tuple[dict[str, Tensor], Responses]:
    """The hypergradient formed from exactly the point's x and X, in their dtype, with the responses it used.

    Counts K x, K X and, when K has learnable parameters, the two applications of its backward pass.
    """
    frozen, instance, x, X, b = point.frozen, point.instance, point.x.detach(), point.X.detach(), point.b.detach()
    counter = instance.counter
    data_side = any(p.requires_grad for m in (frozen.operator, frozen.data_term) for p in m.parameters())
    with torch.enable_grad():
        terms = frozen.terms.at(instance.latent.scale)
        latent = terms.latent
        potential, fixed = terms.potential.to(x.dtype), frozen.potential(x.dtype)
        # Both at once: operators cast their parameters to the dtype of the images, and autograd rounds the gradient to
        # that of the parameters behind each cast, where the shares of x and X may have cancelled.
        t, V = terms.operator(torch.cat([x, X])).split(x.shape[0])
        counter.applications += 2
        t_fixed, V_fixed = t.detach().contiguous(), V.detach().contiguous()
        with torch.no_grad():
            y = fixed.grad_into(t_fixed, torch.empty_like(t_fixed))
            Y = fixed.bent(fixed.linearised(t_fixed), V_fixed)
        outputs, weights = [potential.grad(t_fixed)], [V_fixed]
        if t.requires_grad:
            outputs, weights = [*outputs, V, t], [*weights, y, Y]
            counter.applications += 2
        residual = forward_X = None
        if data_side:
            both = torch.cat([latent.image(x), latent.image(X)])
            forward_x, forward_X = frozen.operator(both).split(x.shape[0])
            residual = forward_x - b.to(x.dtype)
            outputs.append((point.data_term.grad(residual) * forward_X).sum())
            weights.append(torch.ones_like(outputs[-1]))
            residual, forward_X = residual.detach(), forward_X.detach()
        if isinstance(frozen.ridge, Tensor):
            outputs.append(frozen.ridge * (latent.image(x) * latent.image(X)).sum())
            weights.append(torch.ones_like(outputs[-1]))
        outputs.append(latent.linear(X))
        weights.append(torch.ones_like(outputs[-1]))
        learned = [(o, w) for o, w in zip(outputs, weights, strict=True) if o.requires_grad]
        gradient = _gradient(frozen, learned)
    return gradient, Responses(t_fixed, V_fixed, y, Y, residual, forward_X)


def energy_gradient(point: Point, weights: Tensor) -> dict[str, Tensor]:
    """∂_theta of sum_i weights_i E(x_i; theta), weights (batch,), for energies without latent variables; counts K x and
    its backward pass."""
    frozen, instance, x, b = point.frozen, point.instance, point.x.detach(), point.b.detach()
    with torch.enable_grad():
        terms = frozen.terms.at(instance.latent.scale)
        energy = terms.potential.to(x.dtype).value(terms.operator(x))
        instance.counter.applications += 2
        energy = energy + point.data_term.value(frozen.operator(x) - b.to(x.dtype))
        if isinstance(frozen.ridge, Tensor):
            energy = energy + 0.5 * frozen.ridge * sum_samples(x * x)
        return _gradient(frozen, [(energy, weights.to(energy))] if energy.requires_grad else [])


def _gradient(frozen: FrozenProblem, learned: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The gradient of sum <output, cotangent> by parameter; through the originals, too, which foreign modules use."""
    clones = list(frozen.parameters.values())
    originals = [torch.zeros_like(p, requires_grad=True) if p.is_inference() else p for p in frozen.originals.values()]
    grads: tuple[Tensor | None, ...] = (None,) * (2 * len(clones))
    if clones and learned:
        targets, cotangents = zip(*learned, strict=True)
        inputs = [*clones, *originals]
        grads = torch.autograd.grad(targets, inputs, cotangents, allow_unused=True, retain_graph=True)
    found = {}
    for k, (name, p) in enumerate(frozen.parameters.items()):
        parts = [g.detach() for g in (grads[k], grads[k + len(clones)]) if g is not None]
        found[name] = sum(parts[1:], parts[0]) if parts else torch.zeros_like(p)
    return found
