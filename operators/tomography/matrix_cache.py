"""Built matrices on disk, so that the next process does not build them again.

One safetensors file per matrix, named after the SHA-256 of what determines it and holding the SHA-256 of its content.
Files are whole or absent: they are written under another name, flushed and renamed, which also makes concurrent
processes safe. Reading never executes anything. A cache that cannot be used costs time, never a result. A folder that
any user may write to is not used: a SHA-256 tells damage, not who wrote a file. Two views of a matrix are built again
beside what is read, which tells matrices of other numbers, such as those of another version of ASTRA.

``LEARNREG_CACHE`` names the folder (by default ``learnreg`` in the user's cache folder); empty turns the cache off.
``LEARNREG_CACHE_GB`` bounds it, 4 by default: the files used longest ago go first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import stat
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
from safetensors import SafetensorError

from learnreg.errors import ConfigError
from learnreg.operators.tomography.astra_matrix import SparseRows

__all__ = ["FORMAT_VERSION", "Sample", "cache_folder", "cached_rows", "key_of"]

FORMAT_VERSION = 1
"""Part of every key: another number makes older files invisible, and old age removes them."""

_DEFAULT_GIGABYTES = 4.0
_STALE_SECONDS = 24 * 3600
_ROUNDING = 1e-4
_KEY, _DIGEST = "learnreg_key", "sha256"
_warned: set[str] = set()


def cache_folder() -> Path | None:
    """The folder of the cache, or None where it is turned off."""
    named = os.environ.get("LEARNREG_CACHE")
    if named is not None:
        return Path(named).expanduser() if named.strip() else None
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "learnreg"


def key_of(description: Mapping[str, Any]) -> str:
    """SHA-256 of what determines a matrix and of the format; numbers count with all their digits."""
    text = json.dumps({"format": FORMAT_VERSION, **description}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Sample:
    """Numbers of some rows of a matrix, and what makes these again: cheap, and enough to tell another matrix."""

    numbers: npt.NDArray[np.int64]
    build: Callable[[], SparseRows]


def cached_rows(
    key: str,
    build: Callable[[], SparseRows],
    shape: tuple[int, int] | None = None,
    sample: Sample | None = None,
) -> SparseRows:
    """The matrix stored under a key, or the one that ``build`` makes, which is then stored.

    Parameters
    ----------
    shape: that it has.
    sample: of its rows, by which a stored one is told from another: its SHA-256 says that it is what somebody wrote.
    """
    folder = cache_folder()
    if folder is None or _open_to_all(folder):
        return build()
    path = folder / f"matrix-{key}.safetensors"
    rows = _load(path, key, shape, sample)
    if rows is None:
        rows = build()
        _store(path, key, rows)
    return rows


def _open_to_all(folder: Path) -> bool:
    try:
        mode = folder.stat().st_mode if os.name == "posix" else 0
    except OSError:
        return False  # said when it is used
    if mode & stat.S_IWOTH:
        _warn_once(
            f"{folder}: any user may write to this folder, so that its matrices are not trusted and every process "
            f"builds its own. Use another LEARNREG_CACHE, or: chmod o-w {folder}"
        )
    return bool(mode & stat.S_IWOTH)


def _load(path: Path, key: str, shape: tuple[int, int] | None, sample: Sample | None) -> SparseRows | None:
    try:
        if not path.is_file():
            return None
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            rows = SparseRows(*(file.get_tensor(name) for name in SparseRows._fields))
        if metadata.get(_KEY) != key or metadata.get(_DIGEST) != _digest(key, rows):
            raise ValueError("its content does not match its SHA-256")
        _check(rows, shape)
        if sample is not None and not _holds(rows, sample):
            raise ValueError("its entries are not those of this scan")
    except PermissionError:
        return None
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        warnings.warn(f"{path}: damaged ({error}); the matrix is built again.", stacklevel=2)
        return None
    with contextlib.suppress(OSError):  # a read-only cache does not know what was used last
        os.utime(path)
    return rows


def _check(rows: SparseRows, shape: tuple[int, int] | None) -> None:
    """ValueError unless these are the rows of a matrix: products look nothing up."""
    starts, columns, values = rows
    whole = starts.ndim == columns.ndim == values.ndim == 1 and starts.size > 0 and columns.size == values.size
    types = [array.dtype.name for array in rows] == ["int32", "int32", "float32"]
    if not (whole and types) or starts[0] != 0 or starts[-1] != columns.size or (np.diff(starts) < 0).any():
        raise ValueError("its rows do not fit together")
    count, most = (starts.size - 1, 2**31 - 1) if shape is None else shape
    if starts.size != count + 1 or (columns.size and not 0 <= columns.min() <= columns.max() < most):
        raise ValueError("its rows are not those of this scan")
    if not np.isfinite(values).all():
        raise ValueError("it has NaN or infinite entries")


def _holds(rows: SparseRows, sample: Sample) -> bool:
    """Whether the rows of the sample are as they are built now, up to the rounding of another machine."""
    new = sample.build()
    starts, ends = rows.starts[sample.numbers], rows.starts[sample.numbers + 1]
    if not np.array_equal(ends - starts, np.diff(new.starts)):
        return False
    places = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)])
    return np.array_equal(rows.columns[places], new.columns) and np.allclose(
        rows.values[places], new.values, rtol=_ROUNDING, atol=_ROUNDING
    )


def _store(path: Path, key: str, rows: SparseRows) -> None:
    size, limit = sum(array.nbytes for array in rows), _limit()
    if size > limit:
        _warn_once(
            f"a matrix of {size / 1e9:.1f} GB is not cached: the cache is bounded to {limit / 1e9:.1f} GB. "
            "Set LEARNREG_CACHE_GB to a larger number."
        )
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            metadata = {_KEY: key, _DIGEST: _digest(key, rows)}
            safetensors.numpy.save_file(rows._asdict(), temporary, metadata=metadata)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # absent after a replacement
                temporary.unlink()
        _prune(path.parent, limit, keep=path)
    except (OSError, SafetensorError) as error:
        _warn_once(
            f"{path.parent}: matrices cannot be cached here ({error}), every process builds its own. Set "
            "LEARNREG_CACHE to a writable folder, or to nothing to turn the cache off."
        )


def _prune(folder: Path, limit: float, keep: Path) -> None:
    """Remove the files used longest ago beyond the limit, and what writers that were killed left behind."""
    found = []
    for path in folder.glob("matrix-*.safetensors"):
        with contextlib.suppress(OSError):  # removed by another process
            stat = path.stat()
            found.append((path != keep, -stat.st_mtime, stat.st_size, path))
    total = 0
    for _, _, size, path in sorted(found):
        total += size
        if total > limit and path != keep:
            with contextlib.suppress(OSError):
                path.unlink()
    for path in folder.glob(".matrix-*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()


def _limit() -> float:
    text = os.environ.get("LEARNREG_CACHE_GB", "").strip()
    try:
        gigabytes = float(text) if text else _DEFAULT_GIGABYTES
    except ValueError:
        gigabytes = math.nan
    if not gigabytes >= 0:
        raise ConfigError(f"LEARNREG_CACHE_GB={text!r}: expected a number of gigabytes >= 0.")
    return gigabytes * 1e9


def _digest(key: str, rows: SparseRows) -> str:
    digest = hashlib.sha256(key.encode())
    for name, array in rows._asdict().items():
        digest.update(f"\n{name}:{array.dtype}:{array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=2)
