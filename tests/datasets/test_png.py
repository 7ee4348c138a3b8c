"""PNG files whose checksums are right and whose data are not those of their header's pixels."""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import learnreg as lr
from learnreg import datasets

pytest.importorskip("PIL")

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png(
    width: int, height: int, rows: bytes, bits: int = 8, colour: int = 0, interlaced: int = 0, parts: int = 1
) -> bytes:
    """A file with this header and these rows, filter bytes included."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    data = zlib.compress(rows)
    cuts = [len(data) * k // parts for k in range(parts + 1)]
    stored = b"".join(chunk(b"IDAT", data[a:b]) for a, b in pairwise(cuts))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + stored + chunk(b"IEND", b"")


def grey(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width)).astype(np.uint8)


def rows_of(pixels: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in pixels)


@pytest.mark.parametrize("parts", [1, 3, 40])
@pytest.mark.parametrize("side", [(1, 1), (3, 2), (5, 5), (8, 8), (17, 9), (40, 3)])
@pytest.mark.parametrize("interlaced", [False, True])
def test_whole_files_are_read(interlaced: bool, side: tuple[int, int], parts: int, tmp_path: Path) -> None:
    pixels = grey(*side)
    passes = [pixels[y::down, x::across] for x, y, across, down in ADAM7] if interlaced else [pixels]
    rows = b"".join(rows_of(part) for part in passes if part.size)
    (tmp_path / "a.png").write_bytes(png(side[1], side[0], rows, interlaced=int(interlaced), parts=parts))
    assert np.allclose(255 * datasets.read_image(tmp_path / "a.png")[0].numpy(), pixels)


@pytest.mark.parametrize(
    "header",
    [
        {"height": 11},
        {"height": 9},
        {"height": 10**6},  # half a gigabyte, had it been taken
        {"width": 9, "height": 8},
        {"bits": 16},
        {"bits": 1},
        {"colour": 2},
        {"colour": 6},
        {"interlaced": 1},
    ],
    ids=str,
)
def test_files_of_more_or_fewer_pixels_are_refused(header: dict[str, int], tmp_path: Path) -> None:
    """Nothing is made up for what is missing, and nothing left out."""
    (tmp_path / "a.png").write_bytes(png(**{"width": 8, "height": 10, "rows": rows_of(grey(10, 8)), **header}))  # type: ignore[arg-type]
    with pytest.raises(lr.DataError, match=r"a\.png: its header promises .* pixels, .* bytes, and its data are"):
        datasets.read_image(tmp_path / "a.png")
