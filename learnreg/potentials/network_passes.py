"""Passes through an input-convex network without autograd: sample by sample, in memory that is kept between calls, so
that all but the first operation on a tensor find it in the cache. Formulas are in ``network.py``."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.convolutions.network_layers import mix, mix_adjoint

__all__ = ["Layers", "bend_into", "gradient_into", "linearise_into"]


@dataclass(frozen=True)
class Layers:
    """A network's numbers in the dtype of its responses: v, b (L, n, 1, 1), c (n, 1, 1), and U of each pair of
    layers."""

    smoothing: Tensor
    biases: Tensor
    weights: Tensor
    mixing: Tensor

    def responses(self, t: Tensor) -> Tensor:
        """The responses of one sample (L n, h, w) by layer, (L, n, h, w)."""
        return t.view(*self.biases.shape[:2], *t.shape[1:])


@torch.no_grad()
def gradient_into(layers: Layers, t: Tensor, out: Tensor) -> None:
    """f'(t) in the memory of ``out``, which is not t."""
    for t_, out_ in zip(t, out, strict=True):
        y = layers.responses(out_)
        _forward(layers, layers.responses(t_), y)
        _backward(layers, y, y, None)


@torch.no_grad()
def linearise_into(layers: Layers, t: Tensor, y: Tensor, slopes: Tensor, bends: Tensor) -> None:
    """f'(t), s'(u) and q s''(u) in the memory of the last three, of the shape of t."""
    for t_, *out in zip(t, y, slopes, bends, strict=True):
        y_, slopes_, bends_ = (layers.responses(p) for p in out)
        _forward(layers, layers.responses(t_), slopes_, bends_)
        _backward(layers, slopes_, y_, bends_)


@torch.no_grad()
def bend_into(layers: Layers, slopes: Tensor, bends: Tensor, v: Tensor, out: Tensor) -> None:
    """f'' v in the memory of ``out``, which is not v, from slopes s' and bends q s''."""
    for samples in zip(slopes, bends, v, out, strict=True):
        slope, bend, own, bent = (layers.responses(p) for p in samples)
        tangent, dz = _scratch(own, 2)
        for l in range(len(own)):
            if l == 0:
                torch.mul(bend[0], own[0], out=bent[0])
                torch.mul(slope[0], own[0], out=dz)
                continue
            mix_into(dz, layers.mixing[l - 1], tangent).add_(own[l])
            torch.mul(bend[l], tangent, out=bent[l])
            if l + 1 < len(own):
                torch.mul(slope[l], tangent, out=dz)
        for l in range(len(own) - 1, 0, -1):
            bent[l - 1].addcmul_(slope[l - 1], mix_adjoint_into(bent[l], layers.mixing[l - 1], dz))


def _forward(layers: Layers, t: Tensor, slopes: Tensor, bends: Tensor | None = None) -> None:
    """s'(u), and s''(u) if there is memory for it, of each layer."""
    u, z = _scratch(t, 2)
    half, one = t.new_full((), 0.5), t.new_ones(())
    for l, v in enumerate(layers.smoothing):
        if l == 0:
            torch.add(t[0], layers.biases[0], out=u)
        else:
            mix_into(z, layers.mixing[l - 1], u).add_(t[l]).add_(layers.biases[l])
        root = torch.addcmul(v * v, u, u, out=z).sqrt_()
        smaller = torch.abs(u, out=slopes[l]).add_(root).mul_(root)  # s'(-|u|), which does not cancel
        torch.div(0.5 * v * v, smaller, out=smaller)
        torch.where(u > 0, one - smaller, smaller, out=slopes[l])
        if bends is not None:
            ratio = torch.div(v, root, out=bends[l])
            ratio.mul_(ratio).mul_(half).div_(root)
        if l + 1 < len(t):
            root.add_(u).sub_(v).mul_(half)  # z = s(u), in the same memory


def _backward(layers: Layers, slopes: Tensor, y: Tensor, bends: Tensor | None) -> None:
    """y = q s' in the memory of y, which may be that of the slopes, and bends q s''."""
    q = layers.weights
    (memory,) = _scratch(y, 1)
    for l in range(len(y) - 1, -1, -1):
        torch.mul(slopes[l], q, out=y[l])
        if bends is not None:
            bends[l].mul_(q)
        if l:
            q = mix_adjoint_into(y[l], layers.mixing[l - 1], memory)


def mix_into(z: Tensor, U: Tensor, out: Tensor) -> Tensor:
    """U z of one sample (n, h, w) in the memory of ``out``."""
    if U.shape[-1] > 1:
        return out.copy_(mix(z[None], U)[0])
    torch.mm(U[:, :, 0, 0], z.flatten(1), out=out.view(out.shape[0], -1))
    return out


def mix_adjoint_into(y: Tensor, U: Tensor, out: Tensor) -> Tensor:
    """U^T y of one sample (n, h, w) in the memory of ``out``."""
    if U.shape[-1] > 1:
        return out.copy_(mix_adjoint(y[None], U)[0])
    torch.mm(U[:, :, 0, 0].T, y.flatten(1), out=out.view(out.shape[0], -1))
    return out


_memory = threading.local()


def _scratch(like: Tensor, count: int) -> list[Tensor]:
    """Tensors of the shape of one layer of ``like``, the same at every call for this shape in this thread."""
    key = (tuple(like.shape[1:]), like.dtype, like.device)
    kept: tuple[object, list[Tensor]] | None = getattr(_memory, "kept", None)
    if kept is None or kept[0] != key:
        with torch.inference_mode(False):
            kept = (key, [torch.empty(key[0], dtype=like.dtype, device=like.device) for _ in range(2)])
        _memory.kept = kept
    return kept[1][:count]
