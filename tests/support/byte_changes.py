"""Bytes changed at random, as damaged disks, broken copies and attackers do."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

__all__ = ["BYTES", "SIZES", "Seeds"]

Seeds = Sequence[bytes]
SIZES = (0, 1, 2, 3, 7, 8, 9, 127, 128, 255, 256, 1023, 4096, 32767, 32768, 65535, 65536, 10**6, 2**24, 2**31 - 1)
SIZES += (2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1)


def _span(data: bytes, order: random.Random) -> tuple[int, int]:
    first = order.randrange(len(data) + 1)
    return first, min(len(data), first + order.choice((1, 2, 4, 8, 16, 64, 512, len(data))))


def _place(data: bytes, order: random.Random) -> int:
    """Headers stand at the beginning, directories of some formats at the end."""
    if not data:
        return 0
    near = min(len(data), 400)
    return order.choice((order.randrange(near), order.randrange(len(data)), len(data) - 1 - order.randrange(near)))


def _flip(data: bytes, seeds: Seeds, order: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(order.randint(1, 8) if data else 0):
        changed[_place(data, order)] ^= 1 << order.randrange(8)
    return bytes(changed)


def _write(data: bytes, seeds: Seeds, order: random.Random) -> bytes:
    place = _place(data, order)
    new = order.randbytes(order.randint(1, 16))
    return data[:place] + new + data[place + len(new) :]


def _number(data: bytes, seeds: Seeds, order: random.Random) -> bytes:
    """A number of another size, as lengths and counts are written."""
    place, width = _place(data, order), order.choice((1, 2, 4, 4, 8))
    value = order.choice((*SIZES, len(data), len(data) - place)) % 2 ** (8 * width)
    return data[:place] + value.to_bytes(width, order.choice(("little", "big"))) + data[place + width :]


def _cut(data: bytes, seeds: Seeds, order: random.Random) -> bytes:
    return data[: order.randrange(len(data) + 1)]


def _repeat(data: bytes, seeds: Seeds, order: random.Random) -> bytes:
    first, last = _span(data, order)
    return data[:last] + data[first:last] * order.choice((1, 1, 2, 50)) + data[last:]


def _remove(data: bytes, seeds: Seeds, order: random.Random) -> bytes:
    first, last = _span(data, order)
    return data[:first] + data[last:]


def _fill(data: bytes, seeds: Seeds, order: random.Random) -> bytes:
    first, last = _span(data, order)
    return data[:first] + order.choice((b"\0", b"\xff", b" ", b"[")) * (last - first) + data[last:]


def _splice(data: bytes, seeds: Seeds, order: random.Random) -> bytes:
    other = order.choice(seeds)
    place, first = order.randrange(len(data) + 1), order.randrange(len(other) + 1)
    return data[:place] + other[first if order.random() < 0.5 else min(place, len(other)) :]


def _insert(data: bytes, seeds: Seeds, order: random.Random) -> bytes:
    place = _place(data, order)
    return data[:place] + order.randbytes(order.choice((1, 3, 64, 1000))) + data[place:]


def _noise(data: bytes, seeds: Seeds, order: random.Random) -> bytes:
    return data[: order.choice((0, 4, 8, 132))] + order.randbytes(order.choice((0, 1, 30, 1000)))


BYTES: tuple[Callable[[bytes, Seeds, random.Random], bytes], ...] = (
    _flip, _flip, _write, _number, _number, _number, _cut, _repeat, _remove, _fill, _splice, _insert, _noise,
)  # fmt: skip
