"""The cache of built matrices: what is read back is what was built, whatever happened to the file in between."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch

import learnreg as lr
from learnreg.operators import FanBeam2D, ParallelBeam2D
from learnreg.operators.tomography import matrix_cache
from learnreg.operators.tomography import projectors as tomography
from learnreg.operators.tomography.astra_matrix import SparseRows
from learnreg.operators.tomography.geometry import Geometry
from learnreg.operators.tomography.matrix_cache import cache_folder, cached_rows, key_of
from learnreg.operators.tomography.rays import Kernel


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEARNREG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(matrix_cache, "_warned", set())
    return tmp_path / "cache"


def rows(size: int = 100, seed: int = 0) -> SparseRows:
    generator = np.random.default_rng(seed)
    values = generator.random(size).astype(np.float32)
    return SparseRows(np.arange(0, size + 1, 2, dtype=np.int32), np.arange(size, dtype=np.int32), values)


def never() -> SparseRows:
    raise AssertionError("built again")


def same(first: SparseRows, second: SparseRows) -> bool:
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_a_second_operator_reads_what_the_first_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("astra")
    x = torch.rand(1, 1, 8, 8)
    first = ParallelBeam2D(8, 16)(x)
    built: list[int] = []
    build = tomography.build_rows

    def counted(geometry: Geometry, kernel: Kernel, numbers: np.ndarray) -> SparseRows:
        built.append(len(np.unique(numbers // geometry.detectors)))
        return build(geometry, kernel, numbers)

    monkeypatch.setattr(tomography, "build_rows", counted)
    assert torch.equal(ParallelBeam2D(8, 16)(x), first)
    torch.testing.assert_close(ParallelBeam2D(8, 16, symmetry="none")(x), first)
    assert len(files(folder)) == 1, "all rows are made of the stored ones"
    assert built == [2, 2], "views that are built again to compare them"


OTHER = {
    "doubled": lambda r: r._replace(values=2.0 * r.values),
    "a hair off": lambda r: r._replace(values=r.values * np.float32(1.001)),
    "of one value less": lambda r: r._replace(values=np.where(np.arange(r.values.size) == 5, 0, r.values)),
    "other pixels": lambda r: r._replace(columns=r.columns[::-1].copy()),
    "other views": lambda r: SparseRows(
        r.starts, np.roll(r.columns, r.starts[len(r.starts) // 2]), np.roll(r.values, r.starts[len(r.starts) // 2])
    ),
}


@pytest.mark.parametrize("scan", [ParallelBeam2D, FanBeam2D])
@pytest.mark.parametrize("other", OTHER.values(), ids=OTHER)
def test_a_sound_matrix_of_other_numbers_is_built_again(
    folder: Path, scan: Callable[..., ParallelBeam2D], other: Callable[[SparseRows], SparseRows]
) -> None:
    """Its SHA-256 is right: somebody wrote it, or another version of ASTRA."""
    pytest.importorskip("astra")
    x = torch.rand(1, 1, 12, 12)
    first = scan(12, 16)(x)
    (path,) = files(folder)
    key = path.name.removeprefix("matrix-").removesuffix(".safetensors")
    with safetensors.safe_open(path, "numpy") as file:
        stored = SparseRows(*(file.get_tensor(name) for name in SparseRows._fields))
    path.unlink()
    cached_rows(key, lambda: other(stored))
    with pytest.warns(UserWarning, match=r"damaged \(its entries are not those of this scan\)"):
        assert torch.equal(scan(12, 16)(x), first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(scan(12, 16)(x), first)


def test_other_scans_have_other_keys(folder: Path) -> None:
    pytest.importorskip("astra")
    for count, build in enumerate(
        [
            lambda: ParallelBeam2D(8, 6),
            lambda: ParallelBeam2D(9, 6),
            lambda: ParallelBeam2D(8, 7),
            lambda: ParallelBeam2D(8, 6, 15),
            lambda: ParallelBeam2D(8, 6, kernel="strip"),
            lambda: ParallelBeam2D(8, torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 2.5])),
            lambda: FanBeam2D(8, 6),
            lambda: FanBeam2D(8, 6, None, 2.0, 4.0 + 1e-12),
        ],
        1,
    ):
        build()
        assert len(files(folder)) == count
    scaled = ParallelBeam2D.from_geometry(ParallelBeam2D(8, 6).geometry.in_pixels())
    assert len(files(folder)) == count, "the unit of length does not matter"
    torch.testing.assert_close(scaled(torch.ones(1, 1, 8, 8)), 8 * ParallelBeam2D(8, 6)(torch.ones(1, 1, 8, 8)))


def test_keys_depend_on_the_format_and_every_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_of({"a": 0.1, "b": 2})
    assert key == key_of({"b": 2, "a": 0.1})
    assert key != key_of({"a": 0.1 + 2e-17, "b": 2}) or 0.1 + 2e-17 == 0.1
    assert key != key_of({"a": float(np.nextafter(0.1, 1)), "b": 2})
    monkeypatch.setattr(matrix_cache, "FORMAT_VERSION", 10**6)
    assert key != key_of({"a": 0.1, "b": 2})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def exchange(path: Path) -> None:
    """A whole file, but of another matrix."""
    cached_rows("other", lambda: rows(seed=5))
    os.replace(path.with_name("matrix-other.safetensors"), path)


def pickled(path: Path) -> None:
    torch.save({"starts": torch.zeros(1)}, path)


def beginning(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:11])


def flip_in_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"F32")] ^= 4
    path.write_bytes(data)


def long_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[:8] = (2**62).to_bytes(8, "little")
    path.write_bytes(data)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def link(path: Path) -> None:
    path.unlink()
    path.with_name("elsewhere").write_bytes(b"elsewhere")
    path.symlink_to("elsewhere")


DAMAGES = [cut, empty, flip, exchange, pickled, beginning, flip_in_header, long_header, longer, link]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_built_again(folder: Path, damage: Callable[[Path], None]) -> None:
    assert same(cached_rows("key", rows), rows())
    damage(folder / "matrix-key.safetensors")
    with pytest.warns(UserWarning, match=r"matrix-key\.safetensors: damaged .*; the matrix is built again"):
        assert same(cached_rows("key", rows), rows())
    assert same(cached_rows("key", never), rows())


def changed(part: str, place: int, value: float) -> SparseRows:
    array = getattr(rows(), part).copy()
    array[place] = value
    return rows()._replace(**{part: array})


UNSOUND = {
    "column beyond the image": changed("columns", 3, 100),
    "negative column": changed("columns", 3, -1),
    "row beyond the end": changed("starts", -1, 102),
    "falling rows": changed("starts", 5, 90),
    "first row": changed("starts", 0, 2),
    "not a number": changed("values", 0, np.nan),
    "fewer values": rows()._replace(values=rows().values[:-1]),
    "other numbers": rows()._replace(columns=rows().columns.astype(np.int64)),
    "another scan": rows(80),
}


@pytest.mark.parametrize("found", UNSOUND.values(), ids=UNSOUND)
def test_a_matrix_that_is_none_is_built_again(folder: Path, found: SparseRows) -> None:
    """Its SHA-256 is right; products of it would read and write anywhere."""
    cached_rows("key", lambda: found)
    with pytest.warns(UserWarning, match=r"damaged \((its rows|it has NaN)"):
        assert same(cached_rows("key", rows, (50, 100)), rows())


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_folder_that_all_may_write_to_is_not_used(folder: Path) -> None:
    cached_rows("key", lambda: rows(seed=5))
    folder.chmod(0o777)
    with pytest.warns(UserWarning, match="any user may write to this folder.*chmod o-w"):
        assert same(cached_rows("key", rows), rows())
    folder.chmod(0o755)
    assert same(cached_rows("key", never), rows(seed=5))


def test_the_oldest_files_go_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(array.nbytes for array in rows(10_000))
    monkeypatch.setenv("LEARNREG_CACHE_GB", str(3.5 * size / 1e9))
    now = time.time()
    for age, name in enumerate("abc"):
        cached_rows(name, lambda: rows(10_000))
        os.utime(folder / f"matrix-{name}.safetensors", (now - 100 + age, now - 100 + age))
    cached_rows("a", never)  # used last
    cached_rows("d", lambda: rows(10_000))
    assert [path.name[7] for path in files(folder)] == ["a", "c", "d"]
    with pytest.warns(UserWarning, match="not cached: the cache is bounded to"):
        cached_rows("e", lambda: rows(40_000))
    assert [path.name[7] for path in files(folder)] == ["a", "c", "d"]
    monkeypatch.setenv("LEARNREG_CACHE_GB", "much")
    with pytest.raises(lr.ConfigError, match="LEARNREG_CACHE_GB='much'"):
        cached_rows("f", rows)


def test_leftovers_of_killed_writers_are_removed(folder: Path) -> None:
    folder.mkdir()
    old, young = folder / ".matrix-x.safetensors.1.tmp", folder / ".matrix-y.safetensors.2.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    cached_rows("key", rows)
    assert [path.name for path in files(folder)] == [young.name, "matrix-key.safetensors"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It works without a cache and says so once."""
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("LEARNREG_CACHE", str(blocked / "cache"))
    monkeypatch.setattr(matrix_cache, "_warned", set())
    with pytest.warns(UserWarning, match="cannot be cached here"):
        assert same(cached_rows("key", rows), rows())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(cached_rows("key", rows), rows())


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEARNREG_CACHE", " ")
    assert cache_folder() is None
    assert same(cached_rows("key", rows), rows())
    monkeypatch.setenv("LEARNREG_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
    monkeypatch.delenv("LEARNREG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("LOCALAPPDATA", "/l")
    for platform, expected in (
        ("linux", Path("/x/learnreg")),
        ("darwin", Path.home() / "Library" / "Caches" / "learnreg"),
        ("win32", Path("/l/learnreg")),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        assert cache_folder() == expected


def test_processes_at_once(folder: Path) -> None:
    code = (
        "import numpy as np\n"
        "from learnreg.operators.tomography.astra_matrix import SparseRows\n"
        "from learnreg.operators.tomography.matrix_cache import cached_rows\n"
        "def build():\n"
        "    n, whole = 200_000, np.arange(200_001, dtype=np.int32)\n"
        "    return SparseRows(whole, whole[:n], np.ones(n, np.float32))\n"
        "for turn in range(12):\n"
        "    assert float(cached_rows('shared' + str(turn % 3), build).values.sum()) == 200_000\n"
    )
    environment = {**os.environ, "LEARNREG_CACHE_GB": "0.004"}  # room for two of three: they keep removing one
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code], env=environment, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert not [path for path in files(folder) if path.suffix == ".tmp"]
