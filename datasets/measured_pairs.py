"""Simulated measurements of images as pairs (measurement, ground truth)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from learnreg.datasets.seeding import item_generator, item_index, named_images
from learnreg.errors import DataError, ShapeError
from learnreg.linear.arguments import check_real, check_type, whole_number
from learnreg.linear.operator import LinearOperator

__all__ = ["MeasuredPairs", "Noise"]


class Noise(Protocol):
    """A model of noise."""

    def apply(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """A clean measurement, without a batch axis, as it is measured; drawn on the CPU."""


class MeasuredPairs(Dataset[tuple[Tensor, Tensor]]):
    """Item i is (b, x_true): b = A x_true + noise, of shape ``range_shape``, both float32 on the CPU.

    Measurements are simulated at the first access, ``block`` images through the operator at once, and kept in memory.
    The noise of item i depends on ``seed`` and i alone: neither workers nor the order of access change it.

    Parameters
    ----------
    operator: any linear operator, such as ``ParallelBeam2D(128, 60)``.
    images: tensors of its ``domain_shape`` in a sequence, by name, or stacked into one tensor.
    noise: a model with ``apply(clean, generator)``.
    seed: any integer.
    block: images through the operator at once.

    Raises
    ------
    ShapeError: an image of another shape than the operator's domain.
    DataError: no images, or an image that is not finite.
    ConfigError: ``block`` is not positive.

    Examples
    --------
    >>> A = lr.operators.Identity((1, 8, 8))
    >>> pairs = lr.datasets.MeasuredPairs(A, [torch.ones(1, 8, 8)], lr.datasets.GaussianNoise(0.1))
    >>> b, x_true = pairs[0]
    >>> b.shape
    torch.Size([1, 8, 8])
    """

    def __init__(
        self,
        operator: LinearOperator,
        images: Mapping[str, Tensor] | Sequence[Tensor] | Tensor,
        noise: Noise,
        seed: int = 0,
        block: int = 16,
    ) -> None:
        name = type(self).__name__
        check_type(operator, LinearOperator, f"{name}(operator)", "a LinearOperator such as ParallelBeam2D")
        self.operator, self.noise = operator, noise
        self.seed, self.block = seed, whole_number(block, f"{name}(block)")
        named = named_images(images, f"{name}(images)")
        if not named:
            raise DataError("there are no images to measure.", hint="Pass at least one image.")
        self.names = list(named)
        self.images = [_check_image(name, image, operator) for name, image in named.items()]
        self._measured: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        index = item_index(index, len(self.images))
        if index not in self._measured:
            self._measure(index - index % self.block)
        return self._measured[index], self.images[index]

    def _measure(self, first: int) -> None:
        members = range(first, min(first + self.block, len(self.images)))
        with torch.no_grad():
            clean = self.operator(torch.stack([self.images[i] for i in members])).to("cpu", torch.float32)
        for i, p in zip(members, clean, strict=True):
            self._measured[i] = self.noise.apply(p, item_generator("noise", self.seed, i))


def _check_image(name: str, image: Tensor, operator: LinearOperator) -> Tensor:
    check_real(image, name, f"{tuple(operator.domain_shape)}")
    if tuple(image.shape) != tuple(operator.domain_shape):
        raise ShapeError(
            f"{name} has shape {tuple(image.shape)}, {type(operator).__name__} takes {tuple(operator.domain_shape)}. "
            "Resize images with learnreg.datasets.resize_slice(image, size)."
        )
    if not bool(torch.isfinite(image).all()):
        raise DataError("the image holds NaN or infinite values.", name, "Replace them before using the image.")
    return image.detach().to("cpu", torch.float32)
