"""Random numbers that depend on a key alone, so that neither workers nor the order of access change them."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["item_generator"]


def item_generator(*key: int | str) -> torch.Generator:
    """A generator on the CPU for one item of a data set; ``key`` is its seed, its index and what else names it."""
    # Hashed, because generators with neighbouring seeds must not be neighbours.
    digest = hashlib.blake2b(":".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
