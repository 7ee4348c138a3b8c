"""Whether the data of a PNG file are all of its pixels: decoders take what is missing for black, and leave the rest."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from learnreg.errors import DataError

__all__ = ["check_rows"]

_SIGNATURE = 8
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_BLOCK = 2**20
_INTERLACED = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Passes: first column and row, and the steps between them (PNG specification, 8.2)."""


def check_rows(data: bytes, path: Path) -> None:
    """Inflate what a file holds, without keeping it, and hold its length against the header's.

    Raises
    ------
    DataError: there are more or fewer bytes than rows of pixels have.
    """
    chunks = _chunks(data)
    kind, header = next(chunks, (b"", b""))
    if kind != b"IHDR" or len(header) != 13:
        return  # the decoder says what is wrong
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    expected = _bytes_of(width, height, bits * _CHANNELS.get(colour, 0), bool(interlaced))
    try:
        found = _inflated((part for kind, part in chunks if kind == b"IDAT"), expected)
    except zlib.error:
        return
    if found != expected:
        less = "more" if found > expected else f"{found:,}"
        raise DataError(
            f"its header promises {width} x {height} pixels, {expected:,} bytes, and its data are {less}.",
            path,
            "Copy or download it again.",
        )


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = _SIGNATURE
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        yield kind, data[at + 8 : at + 8 + length]
        at += 12 + length


def _bytes_of(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Of all rows, each with the byte of its filter."""
    total = 0
    for x, y, across, down in _INTERLACED if interlaced else ((0, 0, 1, 1),):
        columns, rows = max(0, -(-(width - x) // across)), max(0, -(-(height - y) // down))
        total += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    return total


def _inflated(parts: Iterator[bytes], most: int) -> int:
    """How many bytes there are; one beyond ``most`` ends the work."""
    stream, total = zlib.decompressobj(), 0
    for part in parts:
        while part and not stream.eof:
            total += len(stream.decompress(part, _BLOCK))
            part = stream.unconsumed_tail
            if total > most:
                return total
    while not stream.eof and (rest := stream.decompress(b"", _BLOCK)):
        total += len(rest)
    return total
