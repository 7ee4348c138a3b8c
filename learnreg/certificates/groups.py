"""Bounds of one group of parameters each, and the groups of responses that one entry of a parameter multiplies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.linear.norms import largest_eigenvalue
from learnreg.linear.samples import sum_samples
from learnreg.linear.share import Share
from learnreg.lower_level.instance import Instance

__all__ = ["GroupBound", "density_bound", "group_norm", "group_pullback_norm"]


@dataclass(frozen=True)
class GroupBound:
    """constant + on_E ‖X - X^‖ + on_energy ‖√D^ K (X - X^)‖ bounds the error of one parameter group's gradient, per
    sample: (batch,) each. The errors of X wait for the whole batch where the loss couples its samples."""

    constant: Tensor
    on_E: Tensor
    on_energy: Tensor

    @classmethod
    def by_norm(cls, constant: Tensor, on_E: Tensor) -> GroupBound:
        """Without the energy norm."""
        return cls(constant, on_E, torch.zeros_like(on_E))

    def scaled(self, factor: float) -> GroupBound:
        """The bound after a linear map of this norm."""
        return GroupBound(factor * self.constant, factor * self.on_E, factor * self.on_energy)

    def at(self, E: Tensor, E_energy: Tensor) -> Tensor:
        """The bound for these errors of X, (batch,); infinite errors count only where they matter."""
        terms = ((self.on_E, E), (self.on_energy, E_energy))
        return self.constant + sum(torch.where(factor == 0, 0.0, factor * error) for factor, error in terms)


def group_norm(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Largest norm of a group of t (batch, ...), (batch,): a group is what one entry of a parameter of this shape,
    broadcast against t without its batch axis, multiplies."""
    aligned = (1,) * (t.dim() - 1 - len(shape)) + shape
    shared = [axis + 1 for axis, size in enumerate(aligned) if size == 1]
    square = (t * t).sum(shared, keepdim=True) if shared else t * t
    return square.flatten(1).amax(1).sqrt()


def density_bound(
    gradient: Tensor, V: Tensor, slope: Tensor, e: Tensor, L: float, shape: tuple[int, ...]
) -> GroupBound:
    """For a density of this shape: <s(t_c), V_c> per entry c with |s(t^) - s(t)| <= slope |dt|. ``gradient``: s(t), or
    what bounds its norms. L: with ‖t - t^‖ <= L e."""
    slope_V = group_norm(slope * V, shape)
    slope_max = slope.expand(V.shape[0], *slope.shape[1:]).flatten(1).amax(1)
    return GroupBound.by_norm(slope_V * L * e, group_norm(gradient, shape) * L + slope_max * L * e * L)


def group_pullback_norm(
    instance: Instance, p: Tensor, shape: tuple[int, ...], pullback: Tensor | None = None, share: Share | None = None
) -> Tensor:
    """sup over u of ‖(<p_g, (K u)_g>)_g‖ / ‖u‖ over groups g, (batch,): the norm of the images K_g^T p_g, by their Gram
    matrix for one group or where the operator knows them, else at most max_g ‖p_g‖ ‖K‖. *Rigorous bound.* Counts one
    application at most; none if ``pullback``, K^T p, is all it needs. ``share``: where p lies among all responses of a
    stack."""
    by_norm = group_norm(p, shape) * instance.analysis.norm_bound()
    if all(size == 1 for size in shape):
        whole = p if share is None else share.embedded(p, instance.analysis.range_shape[0])
        image = instance.adjoint(whole) if pullback is None else pullback
        return torch.minimum(by_norm, sum_samples(image * image).sqrt() * (1.0 + 1e-12) + 1e-14 * by_norm)
    operator = instance.analysis if share is None else instance.analysis.part_at(share)
    images = operator.group_images(p, shape)
    if images is None:
        return by_norm
    instance.counter.applications += 1
    gram = largest_eigenvalue(images @ images.transpose(1, 2)).sqrt()
    return torch.minimum(by_norm, gram * (1.0 + 1e-12) + 1e-14 * by_norm)
