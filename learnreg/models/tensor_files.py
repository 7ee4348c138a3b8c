"""Files that are whole or absent: atomic writes, strict JSON, and safetensors files with a SHA-256 of their content."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from learnreg.errors import CheckpointError, LearnregError
from learnreg.linear.paths import file_trouble, is_lfs_pointer

__all__ = ["check_finite", "check_state", "dumps", "plain", "read_tensors", "write_atomically", "write_tensors"]

_HEADER_LENGTH = 8  # bytes of the little-endian length in front of a safetensors header
_CONTENT, _DIGEST = "learnreg", "sha256"
_MOST_TENSORS = 2**16


def write_atomically(path: Path, data: bytes, failure: Callable[[str], LearnregError] = CheckpointError) -> None:
    """Write ``data`` so that ``path`` holds either its old content or all of the new one, even after a power cut.

    Raises
    ------
    What ``failure`` makes of a message, when the system refuses (disk full, no permission); nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # absent after a replacement
                temporary.unlink()
        _sync_folder(path.parent)
    except OSError as error:
        raise failure(
            f"{path}: cannot be written ({error.strerror or error}). Check the free space and the permissions of the "
            "folder; an earlier version of the file, if there was one, is unchanged."
        ) from error


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere folders cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def plain(value: Any) -> Any:
    """``value`` as JSON knows it: tensors of one element become numbers, paths and enum members strings, and numbers
    that are not finite None, for which JSON has no other word."""
    if isinstance(value, Tensor):
        return plain(value.detach().tolist())
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "item"):  # NumPy scalars
        return plain(value.item())
    return str(value)


def dumps(value: Any) -> str:
    """One line of strict JSON of ``plain(value)``."""
    return json.dumps(plain(value), allow_nan=False, ensure_ascii=False)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Write tensors and a JSON object as a safetensors file, atomically, with the SHA-256 of both.

    Raises
    ------
    CheckpointError: the file cannot be written, or a tensor has a dtype that cannot be stored.
    """
    stored = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    try:
        data = safetensors.torch.save(stored, metadata={_CONTENT: text, _DIGEST: _digest(stored, text)})
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: a tensor cannot be stored ({error}).") from error
    write_atomically(path, _in_order(data))


def _in_order(data: bytes) -> bytes:
    """A safetensors file with the entries of its header in the order of their names: the library has none, so that
    equal contents made files of different bytes."""
    end = _HEADER_LENGTH + int.from_bytes(data[:_HEADER_LENGTH], "little")
    header = json.dumps(json.loads(data[_HEADER_LENGTH:end]), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    text = header.encode()
    text += b" " * (-len(text) % _HEADER_LENGTH)  # tensors begin at multiples of eight bytes
    return len(text).to_bytes(_HEADER_LENGTH, "little") + text + data[end:]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON object that ``write_tensors`` stored. Never executes anything from the file.

    Raises
    ------
    CheckpointError: the file is missing, truncated, damaged or of another kind.
    """
    data = _read(path)
    try:
        length = int.from_bytes(data[:_HEADER_LENGTH], "little")
        header = json.loads(data[_HEADER_LENGTH : _HEADER_LENGTH + length])
        if len(header) > _MOST_TENSORS:
            raise ValueError(f"{len(header):,} tensors, at most {_MOST_TENSORS:,} are read")
        metadata = header.get("__metadata__") or {}
        tensors = safetensors.torch.load(data)
        digest = _digest(tensors, metadata[_CONTENT]) if _CONTENT in metadata else ""
    except Exception as error:  # the library raises many kinds when a file is damaged
        raise CheckpointError(
            f"{path}: not a safetensors file, truncated or damaged ({error}). Copy it again, or use another file."
        ) from error
    if _CONTENT not in metadata or _DIGEST not in metadata:
        raise CheckpointError(f"{path}: a safetensors file, but not one that learnreg wrote.")
    if metadata[_DIGEST] != digest:
        raise CheckpointError(
            f"{path}: damaged, its content does not match its SHA-256. Copy it again, or use another file."
        )
    try:
        content = json.loads(metadata[_CONTENT], parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its description cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: its description is a {type(content).__name__}, expected a JSON object.")
    return tensors, content


def check_state(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], file: Path) -> None:
    """CheckpointError unless the tensors have the names, shapes and kinds of dtype that are expected."""
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        raise CheckpointError(
            f"{file}: parameters missing: {', '.join(missing) or 'none'}; unknown: {', '.join(extra) or 'none'}."
        )
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{file}: parameter {name} has shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}."
            )
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise CheckpointError(
                f"{file}: parameter {name} has dtype {tensor.dtype}, expected {expected[name].dtype}."
            )


def check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """CheckpointError where an entry is NaN or infinite."""
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: parameter {name} has NaN or infinite entries; use an earlier model.")


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _read(path: Path) -> bytes:
    if trouble := file_trouble(path):
        raise CheckpointError(f"{path}: {trouble}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}). Check its permissions.") from error
    except MemoryError as error:
        raise CheckpointError(f"{path}: it takes more memory than there is.") from error
    if is_lfs_pointer(data):
        raise CheckpointError(f"{path}: this is a Git LFS pointer, not the file itself. Fetch it with: git lfs pull")
    return data


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 of the text and, by sorted name, each tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
