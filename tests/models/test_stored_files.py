"""Files written by earlier versions, in tests/data: models reconstruct the same images, an interrupted run goes on.

Each model file holds what the version that wrote it found: the regularizer's value at ``x0``, and the reconstruction
``x`` from ``b``, certified to 1e-12, with the energy there.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.command_line import succeed

import learnreg as lr
from learnreg.models.tensor_files import read_tensors, write_tensors
from learnreg.regularizers import REGULARIZERS

DATA = Path(__file__).parents[1] / "data"
FILES = sorted((DATA / "models").glob("*.safetensors"))
ACCURACY = 1e-12


NAMES = {
    "fields-of-experts", "icnn", "imported-ridge", "learned-tgv", "learned-tv", "multivariate", "ridge", "scaled", "tv",
}  # fmt: skip
"""Of the regularizers that files of earlier versions hold."""


def test_names_in_files_keep_their_meaning() -> None:
    stored = {lr.load(file).config["regularizer"]["name"] for file in FILES}
    assert stored == NAMES <= set(REGULARIZERS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_stored_model_computes_the_same(file: Path) -> None:
    model = lr.load(file)
    if not model.denoises:
        pytest.importorskip("astra")
    expected = model.config["expected"]
    b, x0, x = (torch.tensor(expected[key], dtype=torch.float64) for key in ("b", "x0", "x"))
    assert float(model.regularizer.value(x0).detach()) == pytest.approx(expected["value"], rel=ACCURACY)
    found = model.reconstruct(b, ACCURACY, details=True)
    assert found.status.name == expected["status"] == "CONVERGED"
    distance = float((found.x - x).square().mean().sqrt())
    assert distance <= float(found.error_bound) + expected["error_bound"] <= 2 * ACCURACY
    energy = model.problem(tuple(b.shape[1:])).energy(x, b)
    assert float(energy.detach()) == pytest.approx(expected["energy"], rel=ACCURACY)


def test_a_stored_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was interrupted after four of six updates; the fifth loss is that of its own version, which went on, up to the
    accuracy of the lower level."""
    pytest.importorskip("skimage.metrics")
    shutil.copytree(DATA / "run", tmp_path / "run")
    shutil.copytree(DATA / "images", tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    before = lr.load("run/model.safetensors").regularizer
    succeed("train", "denoise", "--resume", "--out", "run")
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[4]["loss"] == pytest.approx(0.4718, rel=1e-2)
    after = lr.load("run/model.safetensors").regularizer
    assert not torch.equal(after.get_parameter("filters"), before.get_parameter("filters"))


def test_equal_models_are_files_of_equal_bytes(tmp_path: Path) -> None:
    tensors = {name: torch.full((2, 3), float(k)) for k, name in enumerate(("b", "ä", "a"))}
    found = set()
    for k in range(8):  # the order of a hash map is another one each time
        write_tensors(tmp_path / str(k), tensors, {"one": 1, "two": "ü"})
        found.add((tmp_path / str(k)).read_bytes())
    assert len(found) == 1
    again, content = read_tensors(tmp_path / "0")
    assert content == {"one": 1, "two": "ü"}
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
