"""Every loader on a sample of damaged files: documented errors alone, and not a word on stderr;
``benchmarks/fuzz_files.py`` reads thousands of them, and watches memory and time."""

from __future__ import annotations

import random
import shutil
import warnings
from pathlib import Path

import pytest
from support.file_loaders import LOADERS, Files, damaged_files

for package in ("PIL", "tifffile", "h5py", "pydicom"):
    pytest.importorskip(package)

FILES = 12


def put(files: Files, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("name", LOADERS)
def test_damaged_files_are_refused_or_read(
    name: str, tmp_path: Path, rotating_seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    loader, refused = LOADERS[name], 0
    for number in range(FILES):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages that write what is damaged
            folder = put(damaged_files(loader, random.Random(rotating_seed + number)), tmp_path / "damaged")
        capfd.readouterr()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", str(folder))  # ours, which name the file
            warnings.filterwarnings("ignore", ".*look(s|ed) like degrees")
            try:
                loader.read(folder)
            except loader.may_raise:
                refused += 1
            except Exception as error:
                pytest.fail(f"file {number} of seed {rotating_seed}: {type(error).__name__}: {error}")
        assert capfd.readouterr() == ("", ""), f"file {number} of seed {rotating_seed}"
    assert refused, "the files are whole"


@pytest.mark.parametrize("name", LOADERS)
def test_whole_files_are_read(name: str, tmp_path: Path) -> None:
    loader = LOADERS[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", str(tmp_path))  # of transparency
        loader.read(put(loader.seeds()[0], tmp_path / "whole"))
