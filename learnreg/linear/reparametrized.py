"""Tensors of a module that are computed from other parameters: torch's parametrizations, weight and spectral norm."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["has_hooks", "reparametrized"]


def has_hooks(module: nn.Module) -> bool:
    """Whether something happens to a module, or to its results, when it is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def reparametrized(module: nn.Module) -> set[str]:
    """Names of the learned parameters behind which a tensor of another size or scale stands, in a way that only torch
    knows: a bound on what moves with that tensor says nothing of them."""
    found = set()
    for prefix, part in module.named_modules():
        computed = any(isinstance(v, Tensor) and v.requires_grad and not v.is_leaf for v in vars(part).values())
        if computed or has_hooks(part) or isinstance(part, parametrize.ParametrizationList):
            found |= {f"{prefix}.{n}" if prefix else n for n, p in part.named_parameters() if p.requires_grad}
    return found
