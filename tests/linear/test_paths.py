"""Paths that the system refuses, and what is no file: one sentence each, from every loader, and no waiting."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import learnreg as lr
from learnreg import datasets
from learnreg.commands.image_inputs import read_input
from learnreg.commands.sources import read_toml
from learnreg.linear.paths import file_trouble, files_in, folder_trouble, read_text
from learnreg.operators.tomography.geometry_file import read_geometry
from learnreg.regularizers import import_ridge

OTHER_USER = 65534

READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "image": (datasets.read_image, ".png"),
    "input": (read_input, ".tif"),
    "array": (read_input, ".npy"),
    "sinogram": (datasets.read_sinogram, ".h5"),
    "k-space": (datasets.read_kspace, ".npy"),
    "slice": (datasets.read_dicom, ".dcm"),
    "series": (datasets.read_dicom_series, ""),
    "CT images": (datasets.load_ct_images, ""),
    "MRI images": (datasets.load_mri_images, ""),
    "training images": (datasets.load_training_images, ""),
    "LoDoPaB": (datasets.LoDoPaB, ""),
    "geometry": (read_geometry, ".toml"),
    "options": (read_toml, ".toml"),
    "model": (lr.load, ".safetensors"),
    "published": (import_ridge, ".pth"),
}
KINDS = (lr.DataError, lr.CheckpointError, lr.ConfigError)


def ring(folder: Path, suffix: str) -> Path:
    path = folder / f"ring{suffix}"
    path.symlink_to(path)
    return path


def pipe(folder: Path, suffix: str) -> Path:
    path = folder / f"pipe{suffix}"
    os.mkfifo(path)
    return path


def inner_folder(folder: Path, suffix: str) -> Path:
    path = folder / f"folder{suffix}"
    path.mkdir()
    return path


REFUSED: dict[str, Callable[[Path, str], Path]] = {
    "absent": lambda folder, suffix: folder / f"absent{suffix}",
    "too long": lambda folder, suffix: folder / ("n" * 300 + suffix),
    "below a file": lambda folder, suffix: Path(__file__) / f"a{suffix}",
    "zero byte": lambda folder, suffix: folder / f"a\0b{suffix}",
    "no text": lambda folder, suffix: folder / f"\udcff{suffix}",
    "half a character": lambda folder, suffix: folder / f"\ud800{suffix}",
    "ring": ring,
    "pipe": pipe,
    "folder": inner_folder,
    "device": lambda folder, suffix: Path("/dev/zero"),
}


@pytest.mark.skipif(os.name != "posix", reason="pipes and links of POSIX")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_file_is_refused(what: str, reader: str, tmp_path: Path) -> None:
    read, suffix = READERS[reader]
    with pytest.raises(KINDS) as found:
        read(REFUSED[what](tmp_path, suffix))
    assert "Traceback" not in str(found.value)
    assert len(str(found.value)) < 900


def as_another_user(function: Callable[[], Any]) -> Any:
    """What the function raises or returns for a user who may do nothing, in a process of its own."""
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        answer = "nobody"
        try:
            os.setgroups([])
            os.setgid(OTHER_USER)
            os.setuid(OTHER_USER)
            answer = f"returned {function()!r}"
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        finally:
            os.write(sink, answer.encode(errors="replace"))
            os._exit(0)
    os.close(sink)
    with os.fdopen(source) as text:
        answer = text.read()
    os.waitpid(child, 0)
    return answer


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("reader", ["image", "series", "training images", "LoDoPaB", "geometry", "model", "published"])
def test_what_may_not_be_read_is_refused(reader: str, tmp_path: Path) -> None:
    read, suffix = READERS[reader]
    shut = tmp_path / "shut"
    inner = shut / f"inner{suffix}"
    shut.mkdir()
    inner.write_bytes(b"x") if suffix else inner.mkdir()
    tmp_path.chmod(0o755)
    for path, mode in ((inner, 0o000), (shut, 0o700), (shut, 0o444)):
        path.chmod(mode)
        found = as_another_user(lambda: read(inner))
        assert re.match("(DataError|CheckpointError|ConfigError): .*(ermission|may not)", found), found
    shut.chmod(0o700)


def test_folders_and_their_files(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("x")
    (tmp_path / "a").write_text("x")
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "inner").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    assert files_in(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert folder_trouble(tmp_path) is file_trouble(tmp_path / "a") is None
    assert folder_trouble(tmp_path / "absent", optional=True) is None
    assert "is a file" in str(folder_trouble(tmp_path / "a", optional=True))


def test_texts_are_not_read_without_end(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b" " * (2**23 + 1))
    with pytest.raises(lr.ConfigError, match="8,388,609 bytes"):
        read_text(path, lambda trouble: lr.ConfigError(str(trouble)))
