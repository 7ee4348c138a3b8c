"""Bounds of one group of parameters each, and the groups of responses that one entry of a parameter multiplies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.convolutions.correlation import correlate_adjoint
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.padding import pad_adjoint
from learnreg.linear.samples import sum_samples
from learnreg.lower_level.instance import Instance

__all__ = ["GroupBound", "group_norm", "group_pullback_norm", "largest_eigenvalue", "parameter_shape"]


_EIGENVALUE_LIMIT = 640


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


def parameter_shape(value: float | Tensor) -> tuple[int, ...]:
    """The shape of a potential's parameter, () for a number."""
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def group_norm(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Largest norm of a group of t (batch, ...), (batch,): a group is what one entry of a parameter of this shape,
    broadcast against t without its batch axis, multiplies."""
    aligned = (1,) * (t.dim() - 1 - len(shape)) + shape
    shared = [axis + 1 for axis, size in enumerate(aligned) if size == 1]
    square = (t * t).sum(shared, keepdim=True) if shared else t * t
    return square.flatten(1).amax(1).sqrt()


def group_pullback_norm(
    instance: Instance, p: Tensor, shape: tuple[int, ...], pullback: Tensor | None = None
) -> Tensor:
    """sup over u of ‖(<p_g, (K u)_g>)_g‖ / ‖u‖ over groups g, (batch,): the norm of the images K_g^T p_g, by their Gram
    matrix for one group or those of a filter bank, else at most max_g ‖p_g‖ ‖K‖. *Rigorous bound.* Counts one
    application at most; none if ``pullback``, K^T p, is all it needs."""
    by_norm = group_norm(p, shape) * instance.analysis.norm_bound()
    bank = instance.analysis
    if all(size == 1 for size in shape):
        image = instance.adjoint(p) if pullback is None else pullback
        return torch.minimum(by_norm, sum_samples(image * image).sqrt() * (1.0 + 1e-12) + 1e-14 * by_norm)
    if isinstance(bank, FilterBank) and shape == (bank.groups, 1, 1):
        instance.counter.applications += 1
        images = _images_by_filter(bank, p.flatten(1, -3)).flatten(2)
        images = images.reshape(images.shape[0], -1, bank.groups, images.shape[2]).sum(1)
        gram = largest_eigenvalue(images @ images.transpose(1, 2)).sqrt()
        return torch.minimum(by_norm, gram * (1.0 + 1e-12) + 1e-14 * by_norm)
    return by_norm


def _images_by_filter(bank: FilterBank, p: Tensor) -> Tensor:
    """W_c^T p_c of each filter, (batch, n, height, width)."""
    filters = bank.filters.to(p.dtype)
    parts = [correlate_adjoint(p[:, c : c + 1], filters[c : c + 1]) for c in range(filters.shape[0])]
    sides = (bank.domain_shape[1], bank.domain_shape[2])
    return pad_adjoint(torch.cat(parts, dim=1), bank.filter_shape, bank.boundary, sides)


def largest_eigenvalue(gram: Tensor) -> Tensor:
    """Rigorous bound of the largest eigenvalue of symmetric positive semidefinite matrices (..., n, n): itself, or
    beyond 640 rows the root of ‖G²‖_F, at most n^(1/4) and usually about 1.2 times it. Infinite where entries are not
    finite."""
    n = gram.shape[-1]
    scale = gram.flatten(-2).norm(dim=-1)
    usable = torch.isfinite(scale) & (scale > 0)
    scaled = torch.where(usable[..., None, None], gram / torch.where(usable, scale, 1.0)[..., None, None], 0.0)
    if n <= _EIGENVALUE_LIMIT:
        largest = torch.linalg.eigvalsh(scaled)[..., -1].clamp_min(0.0) + 1e-14 * n
    else:
        largest = (scaled @ scaled).flatten(-2).norm(dim=-1).sqrt() * (1.0 + 1e-13 * n)
    return torch.where(scale == 0, 0.0, torch.where(usable, largest * scale, torch.inf))
