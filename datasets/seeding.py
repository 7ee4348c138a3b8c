"""Random numbers that depend on a key alone, so that neither workers nor the order of access change them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.linear.arguments import check_real, is_whole, shown

__all__ = ["item_generator", "item_index", "named_images"]


def item_generator(*key: int | str) -> torch.Generator:
    """A generator on the CPU for one item of a data set; ``key`` is its seed, its index and what else names it."""
    # Hashed, because generators with neighbouring seeds must not be neighbours.
    digest = hashlib.blake2b(":".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def item_index(index: Any, count: int) -> int:
    """The item that an index means, from the end where it is negative; IndexError without such an item, as sequences
    raise it, and ConfigError for something else than a whole number."""
    if not is_whole(index, -count, count - 1):
        if is_whole(index, -(2**62)):
            raise IndexError(f"item {index} of a data set of {count} items")
        raise ConfigError(f"item {shown(index)} of a data set of {count} items: expected a whole number.")
    return int(index) % count


def named_images(images: Any, name: str) -> dict[str, Tensor]:
    """Images by name, or of whatever gives them one after the other by number; ConfigError for something else."""
    if isinstance(images, Mapping):
        return dict(images)
    if isinstance(images, Tensor):
        check_real(images, name)
    try:
        listed = None if isinstance(images, (str, bytes)) else list(images)
    except TypeError:  # nothing to iterate over
        listed = None
    if listed is None:
        raise ConfigError(f"{name}: got {shown(images)}, expected images in a list, or by name in a dict.")
    return {f"image {i}": image for i, image in enumerate(listed)}
