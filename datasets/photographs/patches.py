"""Noise, and noisy patches of clean images as pairs (measurement, ground truth)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils.data import Dataset

from learnreg.datasets.seeding import item_generator, item_index, named_images
from learnreg.errors import ConfigError, DataError
from learnreg.linear.arguments import LARGEST_SEED, check_real, shown, whole_number

__all__ = ["DenoisingPatches", "add_noise", "parse_sigma", "parse_sigmas"]

_GOLDEN = (5.0**0.5 - 1.0) / 2.0


def parse_sigma(text: str | float) -> float:
    """A noise level in (0, 1], the standard deviation for images in [0, 1], from a number or a fraction as "25/255".

    Parameters
    ----------
    text: such as 0.1 or 25/255.

    Raises
    ------
    ConfigError: not a number, or outside (0, 1].
    """
    parts = str(text).split("/")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if len(values) not in {1, 2} or (len(values) == 2 and values[1] == 0):
        raise ConfigError(f'sigma={text!r} is neither a number nor a fraction. Write sigma as 0.1 or "25/255".')
    return _check_sigma(values[0] if len(values) == 1 else values[0] / values[1], text)


def parse_sigmas(text: str | float) -> float | tuple[float, float]:
    """A noise level, as :func:`parse_sigma` reads it, or a range (lowest, highest) of them, such as "5/255:50/255".

    Parameters
    ----------
    text: a level, or two with a colon between them.

    Raises
    ------
    ConfigError: a level that is none, or the higher one first.
    """
    low, colon, high = str(text).partition(":")
    return _check_range((parse_sigma(low), parse_sigma(high))) if colon else parse_sigma(text)


def add_noise(image: Tensor, sigma: float, seed: int) -> Tensor:
    """``image`` plus Gaussian noise of standard deviation ``sigma``, not clipped.

    ``seed`` alone decides the noise: it is drawn on the CPU in float32, whatever the dtype and device of ``image``.

    Raises
    ------
    ShapeError: an image of other than real numbers.
    ConfigError: a negative noise level, or a seed out of range.
    """
    check_real(image, "add_noise(image)")
    seed = whole_number(seed, "add_noise(seed)", least=-LARGEST_SEED, most=LARGEST_SEED)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(image.shape, generator=generator, dtype=torch.float32)
    return image + _check_sigma(sigma, sigma) * noise.to(image)


class DenoisingPatches(Dataset[tuple[Tensor, Tensor] | tuple[Tensor, Tensor, float]]):
    """Item i is (b, x_true), both (channels, patch, patch) float32: a random patch of the images, and b = x_true +
    noise; with a range of noise levels (b, x_true, sigma), for noise-conditioned regularizers: sigma is uniform in it,
    or one of so many ``levels``, whose items :func:`learnreg.train` draws into batches of one level each.

    Positions are uniform over all patches of all images, each patch is flipped and transposed at random, and the noise
    is Gaussian with standard deviation ``sigma``, not clipped. Item i depends on ``seed`` and i alone, so that neither
    the number of workers nor the order of access changes it.

    Parameters
    ----------
    images: tensors (channels, height, width) in [0, 1], in a sequence or by name: one channel, or three of colours.
    sigma: noise level in (0, 1], or a range (lowest, highest) of them.
    patch: side of a patch in pixels.
    count: number of items.
    seed: any integer.
    levels: how many noise levels of the range there are, spread evenly in an order drawn by the seed; item i has level
        i mod ``levels``. None: one for each item. Samples of one level are solved together, those of several apart, so
        that batches of one level take a fraction of the time.

    Raises
    ------
    ConfigError: an option out of range, such as sigma=25 in place of 25/255; levels of a single one.
    DataError: no images, or an image of another shape, smaller than a patch, not finite or outside [0, 1].

    Examples
    --------
    >>> pairs = lr.datasets.DenoisingPatches({"flat": torch.full((1, 32, 32), 0.5)}, sigma=0.1, patch=16, count=4)
    >>> noisy, clean = pairs[0]
    >>> len(pairs), noisy.shape
    (4, torch.Size([1, 16, 16]))
    """

    def __init__(
        self,
        images: Mapping[str, Tensor] | Sequence[Tensor],
        sigma: float | tuple[float, float],
        patch: int = 64,
        count: int = 256,
        seed: int = 0,
        levels: int | None = None,
    ) -> None:
        self.sigma = _check_range(sigma) if isinstance(sigma, Sequence) else _check_sigma(sigma, sigma)
        self.patch = whole_number(patch, "DenoisingPatches(patch)")
        self.count = whole_number(count, "DenoisingPatches(count)")
        self.seed, self.levels = seed, _levels(self.sigma, levels, self.count, seed)
        named = named_images(images, "DenoisingPatches(images)")
        if not named:
            raise DataError("there are no images to take patches from.", hint="Pass at least one image.")
        self.images = [_check_image(name, image, patch) for name, image in named.items()]
        if len({image.shape[0] for image in self.images}) > 1:
            raise DataError("some of the images are grey and some coloured.", hint="Read all of them alike.")
        self._ends = list(accumulate(_positions(image, patch) for image in self.images))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, float]:
        item = item_index(index, self.count)
        generator = item_generator(self.seed, item)
        x_true = self._draw_patch(generator)
        noise = torch.randn(x_true.shape, generator=generator, dtype=torch.float32)
        if not isinstance(self.sigma, tuple):
            return x_true + self.sigma * noise, x_true
        low, high = self.sigma
        drawn = float(torch.rand((), generator=generator, dtype=torch.float64))
        sigma = self.levels[item % len(self.levels)] if self.levels else low + (high - low) * drawn
        return x_true + sigma * noise, x_true, sigma

    def batch_groups(self) -> list[range] | None:
        """The items of each noise level, which share batches with no others; None without ``levels``."""
        step = len(self.levels)
        return [range(k, self.count, step) for k in range(step)] if step else None

    def _draw_patch(self, generator: torch.Generator) -> Tensor:
        position = int(torch.randint(self._ends[-1], (), generator=generator))
        which = bisect_right(self._ends, position)
        image = self.images[which]
        row, column = divmod(position - (self._ends[which - 1] if which else 0), image.shape[2] - self.patch + 1)
        x_true = image[:, row : row + self.patch, column : column + self.patch]
        flip_rows, flip_columns, transpose = torch.randint(2, (3,), generator=generator).tolist()
        dims = [dim for dim, flip in ((1, flip_rows), (2, flip_columns)) if flip]
        x_true = x_true.flip(dims)
        return (x_true.transpose(1, 2) if transpose else x_true).contiguous()


def _positions(image: Tensor, patch: int) -> int:
    return (image.shape[1] - patch + 1) * (image.shape[2] - patch + 1)


def _check_sigma(sigma: float, given: object) -> float:
    if not (isinstance(sigma, (int, float)) and 0 < sigma <= 1):
        text = given if isinstance(given, str) else shown(given)
        raise ConfigError(
            f"sigma={text} is outside (0, 1]: it is a standard deviation for images in [0, 1]. "
            f"For noise on the scale of 0 to 255 write sigma as a fraction, such as {_fraction_hint(sigma)}."
        )
    return float(sigma)


def _check_range(sigma: Sequence[float]) -> tuple[float, float]:
    if len(sigma) != 2:
        raise ConfigError(f"sigma={sigma!r}: expected one noise level, or a range (lowest, highest) of them.")
    low, high = (_check_sigma(level, level) for level in sigma)
    if low > high:
        raise ConfigError(f"sigma={sigma!r}: expected the lower noise level first.")
    return low, high


def _levels(sigma: float | tuple[float, float], count: int | None, items: int, seed: int) -> tuple[float, ...]:
    """So many levels, from a seeded start in steps of the golden section: any number of the first ones is spread over
    the range."""
    if count is None:
        return ()
    whole_number(count, "DenoisingPatches(levels)", most=items)
    if not isinstance(sigma, tuple):
        raise ConfigError(f"DenoisingPatches(levels={count}): sigma is a single noise level, expected a range of them.")
    low, high = sigma
    start = float(torch.rand((), generator=item_generator(seed, items, count), dtype=torch.float64))
    return tuple(low + (high - low) * ((start + k * _GOLDEN) % 1.0) for k in range(count))


def _fraction_hint(sigma: object) -> str:
    return f"{sigma:g}/255" if isinstance(sigma, (int, float)) and 2 <= sigma <= 255 else "25/255"


def _check_image(name: str, image: Tensor, patch: int) -> Tensor:
    check_real(image, name, "(channels, height, width)")
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise DataError(
            f"expected an image of shape (1, height, width), or (3, height, width) of colours, got "
            f"{tuple(image.shape)}.",
            name,
        )
    height, width = image.shape[1:]
    if min(height, width) < patch:
        raise DataError(
            f"the image has {height} x {width} pixels, a patch {patch} x {patch}.",
            name,
            f"Choose patch <= {min(height, width)}, or leave this image out.",
        )
    if not torch.isfinite(image).all():
        raise DataError("the image holds NaN or infinite values.", name, "Replace them before using the image.")
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 1:
        raise DataError(f"the image spans [{low:.6g}, {high:.6g}].", name, "Rescale it to [0, 1].")
    return image.detach().to("cpu", torch.float32)
