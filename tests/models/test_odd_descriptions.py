"""Model files with a right SHA-256 whose description is odd: refused when they are loaded, before memory is taken."""

from __future__ import annotations

import copy
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import learnreg as lr
from learnreg import datasets
from learnreg.models.limits import ModestTensors
from learnreg.models.model import load
from learnreg.models.tensor_files import read_tensors, write_tensors
from learnreg.regularizers import import_ridge
from learnreg.training.run_folder import RunFolder

DATA = Path(__file__).parents[1] / "data"
Change = Callable[[dict[str, Any]], object]


def put(*keys: str, value: Any) -> Change:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


CONFIG = ("regularizer", "config")
ODD: list[tuple[str, Change, str]] = [
    ("fields-of-experts", put("constraint", value=True), "constraint|cannot be rebuilt"),
    ("fields-of-experts", put("constraint", value=[0.0, "x"]), "constraint='x'"),
    ("fields-of-experts", put("constraint", value=[[0.0], [1.0]]), r"constraint=\[0.0\]"),
    ("fields-of-experts", put("constraint", value=[1.0, 0.0]), "lower < upper"),
    ("fields-of-experts", put("ridge", value=-5), "ridge=-5"),
    ("fields-of-experts", put("ridge", value={}), "ridge={}"),
    ("fields-of-experts", put("noise_level", value=-0.1), "noise_level"),
    ("fields-of-experts", put("minimiser", value=["global"]), "minimiser"),
    ("fields-of-experts", put("format_version", value=True), "format True"),
    ("fields-of-experts", put("format_version", value=1.0), "format 1.0"),
    ("fields-of-experts", put("config", value=3), "cannot be rebuilt"),
    ("fields-of-experts", put("data_term", value=[]), "cannot be rebuilt"),
    ("fields-of-experts", put("operator", value="identity"), "its operator is 'identity'"),
    ("fields-of-experts", put("operator", "name", value=["identity"]), "its operator is"),
    ("fields-of-experts", put("regularizer", value=None), "cannot be rebuilt"),
    ("fields-of-experts", put("regularizer", "name", value=["x"]), "is not registered"),
    ("fields-of-experts", put(*CONFIG, "filters", value=[]), "cannot be rebuilt"),
    ("fields-of-experts", put(*CONFIG, "filters", value=[-1, 3, 3]), "cannot be rebuilt"),
    ("fields-of-experts", put(*CONFIG, "filters", value=[2000000000, 1, 5, 5]), "but the file holds"),
    ("fields-of-experts", put(*CONFIG, "filters", value=[1000, 1000, 1000]), "1,000,000,000 numbers, far more"),
    ("fields-of-experts", put(*CONFIG, "minimum_smoothing", value=10**400), "cannot be rebuilt"),
    ("icnn", put(*CONFIG, "layers", value=100_000), "layers=100000, but the file holds"),
    ("icnn", put(*CONFIG, "features", value=1000), "cannot be rebuilt|parameter"),
    ("scaled", put(*CONFIG, "base", value={"name": "scaled", "config": {"base": 1}}), "cannot be rebuilt"),
    ("ct", put("operator", "config", value=None), "cannot be rebuilt"),
    ("ct", put("operator", "config", "angles", value=[[1.0]]), "angles"),
]


@pytest.mark.parametrize(("name", "change", "message"), ODD)
def test_odd_descriptions(name: str, change: Change, message: str, tmp_path: Path) -> None:
    tensors, content = read_tensors(DATA / "models" / f"{name}.safetensors")
    changed = copy.deepcopy(content)
    change(changed)
    write_tensors(tmp_path / "model.safetensors", tensors, changed)
    with pytest.raises(lr.CheckpointError, match=message):
        load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("0.0", "NaN", 1), "NaN is no number of JSON"),
        (lambda text: text[:-1], "cannot be read as JSON"),
        (lambda text: "[" * 100_000, "cannot be read as JSON"),
        (lambda text: "[]", "expected a JSON object"),
    ],
)
def test_descriptions_that_are_no_json(
    change: Callable[[str], str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, content = read_tensors(DATA / "models" / "fields-of-experts.safetensors")
    dumps, made = json.dumps, [change]  # the description is the first text, the header of the file the second
    monkeypatch.setattr(
        "learnreg.models.tensor_files.json.dumps", lambda *a, **k: (made.pop() if made else str)(dumps(*a, **k))
    )
    write_tensors(tmp_path / "model.safetensors", tensors, content)
    monkeypatch.undo()
    with pytest.raises(lr.CheckpointError, match=message):
        load(tmp_path / "model.safetensors")


def test_more_tensors_than_any_model_has(tmp_path: Path) -> None:
    entries = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(2**16 + 1))
    header = f"{{{entries}}}".encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(lr.CheckpointError, match="65,537 tensors"):
        load(tmp_path / "a.safetensors")


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(lr.CheckpointError, match="git lfs pull"):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "make",
    [
        lambda n: torch.zeros(n, n),
        lambda n: torch.randn((n, n), generator=torch.Generator()),
        lambda n: torch.full((n, n), 1.0),
        lambda n: torch.ones(size=(n, n)),
        lambda n: torch.empty(torch.Size((n, n))),
        torch.eye,
    ],
)
def test_tensors_are_refused_before_they_are_made(make: Callable[[int], torch.Tensor]) -> None:
    with ModestTensors(10):
        assert make(3).shape == (3, 3)
        with pytest.raises(lr.ConfigError, match=r"10,000,000,000,000,000,000,000 numbers"):
            make(10**11)


@pytest.mark.parametrize(
    "state", [["dict", 1], ["dict", ["a"]], ["tensor", "absent"], ["float", "x"], [], ["dict", [[], 1]], None]
)
def test_odd_states_of_checkpoints(state: Any, tmp_path: Path) -> None:
    write_tensors(
        tmp_path / "checkpoint" / "checkpoint-00000001.safetensors",
        {},
        {"checkpoint_format": 2, "rows": 0, "state": state},
    )
    with pytest.raises(lr.CheckpointError, match="its state cannot be read"):
        RunFolder(tmp_path, resume=True).load_checkpoint()


def malicious(mark: Path) -> bytes:
    """A pickle that makes a folder."""
    return b"cos\nmkdir\n(V" + str(mark).encode() + b"\ntR."


def test_no_code_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    attack = malicious(mark)
    pickle.loads(attack)
    assert mark.exists(), "the attack does not work"
    mark.rmdir()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", attack)
        file.writestr("archive/version", "3\n")
    head = repr({"descr": "|O", "fortran_order": False, "shape": (1,)}).encode() + b"\n"
    array = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + attack
    (tmp_path / "config.json").write_text("{}")
    readers: list[Callable[[Path], Any]] = [
        load, import_ridge, datasets.read_sinogram, datasets.read_kspace, datasets.read_image, datasets.read_dicom,
        datasets.read_hdf5_array,
    ]  # fmt: skip
    for content in (attack, archive.getvalue(), array):
        for suffix in (".safetensors", ".pth", ".npy", ".png", ".tif", ".h5", ".dcm"):
            path = tmp_path / f"a{suffix}"
            path.write_bytes(content)
            for read in readers:
                with pytest.raises((lr.DataError, lr.CheckpointError)):
                    read(path)
    assert not mark.exists()
