"""Model files: what is stored comes back, and nothing damaged is accepted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

import learnreg as lr
import learnreg.regularizers
from learnreg.models.model import FORMAT_VERSION, load, save_model
from learnreg.models.tensor_files import write_tensors
from learnreg.operators import Blur, Identity, from_callables
from learnreg.regularizers import (
    REGULARIZERS,
    AnalysisOperator,
    FieldsOfExperts,
    ImportedRidge,
    InputConvexNetwork,
    LearnedTotalGeneralizedVariation,
    LearnedTotalVariation,
    MultivariateExperts,
    Regularizer,
    RidgeRegularizer,
    Scaled,
    TotalVariation,
)

SAMPLES = {
    "fields-of-experts": lambda: FieldsOfExperts(filters=5, size=3),
    "fields-of-experts, other options": lambda: FieldsOfExperts(
        filters=10, size=3, potential=lr.LogCosh(smoothing=0.03), boundary="circular"
    ),
    "fields-of-experts, from arrays, float64": lambda: FieldsOfExperts.from_arrays(
        torch.randn(3, 4, 4, dtype=torch.float64), torch.rand(3) + 0.1, torch.rand(3) + 0.1
    ),
    "tv": lambda: TotalVariation(weight=0.07, smoothing=2e-3),
    "tikhonov": lambda: learnreg.regularizers.GeneralisedTikhonov(3, 4, 0.5, "valid"),
    "multivariate": lambda: MultivariateExperts(5, 3, 4, minimum_smoothing=1e-3, boundary="reflect"),
    "multivariate, from arrays, float64": lambda: MultivariateExperts.from_arrays(
        torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.rand(3) + 0.1, torch.rand(3) + 0.1
    ),
    "learned-tv": lambda: LearnedTotalVariation(6, 5, smoothing=2e-3, boundary="circular"),
    "learned-tgv": lambda: LearnedTotalGeneralizedVariation(2, 5, smoothing=2e-3, delta=0.3, boundary="circular"),
    "ridge": lambda: RidgeRegularizer((2, 5), 3, 9, shared=True, noise_conditioned=True),
    "imported-ridge": lambda: ImportedRidge(
        [torch.randn(2, 1, 3, 3), torch.randn(3, 2, 3, 3)], torch.rand(3, 6), 0.1, log_scales=torch.randn(3, 1)
    ),
    "icnn": lambda: InputConvexNetwork(features=3, size=3, mixing_size=3, minimum_smoothing=1e-3),
    "icnn, one layer": lambda: InputConvexNetwork(features=4, layers=1),
    "reweighted": lambda: learnreg.regularizers.Reweighted(FieldsOfExperts(filters=5, size=3), steps=1),
    "reweighted, of a conditioned ridge": lambda: learnreg.regularizers.ReweightedRidge(
        RidgeRegularizer((2, 5), 3, 9, noise_conditioned=True), window=3
    ),
    "scaled": lambda: Scaled(FieldsOfExperts(filters=5, size=3), 0.3),
    "combination": lambda: TotalVariation() + 0.3 * FieldsOfExperts(filters=5, size=3),
    "scaled, of a scaled one": lambda: Scaled(Scaled(TotalVariation(), 2.0), 0.3),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(path, FieldsOfExperts(filters=5, size=3), {"sigma": 0.1})
    return path


def rewrite(path: Path, tensors: dict[str, Tensor] | None = None, **changes: object) -> None:
    """The same file with other tensors or other entries of its description, and a matching SHA-256."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    content = json.loads(header["__metadata__"]["learnreg"])
    write_tensors(path, load_bytes(data) if tensors is None else tensors, {**content, **changes})


# ------------------------------------------------------------------------------------------------------------ round t


@pytest.mark.parametrize("name", SAMPLES)
def test_a_regularizer_comes_back(tmp_path: Path, name: str, generator: torch.Generator) -> None:
    regularizer = SAMPLES[name]()
    with torch.no_grad():
        for p in regularizer.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p))
    path = tmp_path / "deep" / "model.safetensors"
    save_model(path, regularizer, {"sigma": 0.1, "training": {"updates": 3}})
    model = load(path)
    assert type(model.regularizer) is type(regularizer)
    assert model.config["sigma"] == 0.1
    assert model.config["training"] == {"updates": 3}
    for (key, p), (loaded_key, loaded) in zip(
        regularizer.named_parameters(), model.regularizer.named_parameters(), strict=True
    ):
        assert loaded_key == key
        assert loaded.dtype == p.dtype
        assert loaded.requires_grad == p.requires_grad
        assert torch.equal(loaded, p)
    x = torch.rand(2, 1, 9, 8, generator=generator, dtype=torch.float64)
    assert torch.equal(model.regularizer.value(x), regularizer.value(x))


def test_every_storable_regularizer_is_registered_and_tested() -> None:
    public = [getattr(learnreg.regularizers, name) for name in learnreg.regularizers.__all__]
    classes = {kind for kind in public if isinstance(kind, type) and issubclass(kind, Regularizer)} - {Regularizer}
    storable = {kind for kind in classes if kind.config is not Regularizer.config}
    assert storable == set(REGULARIZERS.values())
    assert {type(make()) for make in SAMPLES.values()} == storable


def test_the_problem_comes_back(tmp_path: Path) -> None:
    regularizer = TotalVariation()
    problem = lr.LowerLevelProblem(
        Identity((1, 8, 8)), regularizer, ridge=0.25, constraint=lr.Nonnegative(), noise_level=0.1
    )
    save_model(tmp_path / "m.safetensors", problem)
    again = load(tmp_path / "m.safetensors").problem((1, 6, 7))
    assert again.operator.domain_shape == (1, 6, 7)
    assert again.ridge_value == 0.25
    assert again.noise_level == 0.1
    assert again.constraint is not None
    assert (float(again.constraint.lower), float(again.constraint.upper)) == (0.0, float("inf"))


@pytest.mark.parametrize("learnable", [False, True])
def test_weights_of_the_data_term_come_back(tmp_path: Path, learnable: bool) -> None:
    weights = torch.rand(1, 8, 1) + 0.1
    data_term = lr.WeightedLeastSquares(torch.nn.Parameter(weights) if learnable else weights)
    problem = lr.LowerLevelProblem(Identity((1, 8, 8)), TotalVariation(), data_term=data_term)
    path = tmp_path / "m.safetensors"
    save_model(path, problem)
    model = load(path)
    again = model.problem((1, 8, 8))
    assert torch.equal(again.data_term.weights_for(weights), weights)
    assert ("data_term.weights" in again.learnable()) == learnable
    b = torch.rand(1, 1, 8, 8)
    assert torch.equal(model.reconstruct(b, 1e-3), lr.solve(problem, b, 1e-3).x)
    replaced = model.solve(b, 1e-3, data_term=lr.LeastSquares())
    plain = lr.LowerLevelProblem(Identity((1, 8, 8)), TotalVariation())
    assert torch.equal(replaced.x, lr.solve(plain, b, 1e-3).x)
    with pytest.raises(lr.ShapeError, match="do not broadcast"):
        model.reconstruct(torch.rand(1, 1, 9, 9))
    data = path.read_bytes()
    rewrite(path, {name: t for name, t in load_bytes(data).items() if name != "data_term.weights"})
    with pytest.raises(lr.CheckpointError, match="WeightedLeastSquares: the file holds no weights"):
        load(path)


def test_the_data_term_of_counted_photons_comes_back(tmp_path: Path) -> None:
    term = lr.TransmissionLeastSquares(1e4, 2.0, 3.0, 0.25)
    problem = lr.LowerLevelProblem(Identity((1, 8, 8)), TotalVariation(), data_term=term)
    save_model(tmp_path / "m.safetensors", problem)
    model = load(tmp_path / "m.safetensors")
    b = torch.rand(2, 1, 8, 8)
    assert torch.equal(model.data_term.at(b).weights_for(b), term.at(b).weights_for(b))
    assert torch.equal(model.reconstruct(b, 1e-3), lr.solve(problem, b, 1e-3).x)


def test_files_without_a_data_term_are_read(file: Path) -> None:
    data = file.read_bytes()
    content = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["learnreg"])
    del content["data_term"]
    write_tensors(file, load_bytes(data), content)
    assert type(load(file).data_term) is lr.LeastSquares


def test_another_operator_is_given_again(tmp_path: Path) -> None:
    shape = (1, 12, 12)
    operator = from_callables(lambda x: 0.9 * x, lambda y: 0.9 * y, shape, shape) @ Blur(
        torch.full((3, 3), 1 / 9), shape
    )
    save_model(tmp_path / "m.safetensors", lr.LowerLevelProblem(operator, TotalVariation(), ridge=0.1))
    model = load(tmp_path / "m.safetensors")
    b = torch.rand(1, 1, 12, 12)
    with pytest.raises(lr.ConfigError, match=r"Composition.*operator="):
        model.reconstruct(b)
    assert model.reconstruct(b, tolerance=1e-3, operator=operator).shape == b.shape


def test_reconstruct_solves_the_problem(file: Path, generator: torch.Generator) -> None:
    model = load(file)
    b = torch.rand(2, 1, 11, 9, generator=generator)
    solution = model.reconstruct(b, tolerance=1e-5, details=True)
    assert solution.certified
    assert float(solution.error_bound.max()) <= 1e-5
    assert torch.equal(model.reconstruct(b, tolerance=1e-5), solution.x)
    x = solution.x.double().requires_grad_()
    (gradient,) = torch.autograd.grad(model.problem((1, 11, 9)).energy(x, b.double()).sum(), x)
    assert float(gradient.square().mean().sqrt()) < 1e-3


@pytest.mark.parametrize("shape", [(9, 9), (1, 9, 9), (2, 3, 9, 9), (1, 1, 1, 9, 9)])
def test_a_measurement_needs_batch_and_channel(file: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(lr.ShapeError, match=re.escape(str(shape)) + r".*\(batch, 1, height, width\)"):
        load(file).reconstruct(torch.rand(shape))


def test_bad_measurements(file: Path) -> None:
    model = load(file)
    with pytest.raises(lr.DataError, match="NaN"):
        model.reconstruct(torch.full((1, 1, 9, 9), torch.nan))
    with pytest.raises(lr.ShapeError, match="list"):
        model.reconstruct([[0.0]])
    with pytest.raises(lr.ConfigError, match="tolerance"):
        model.reconstruct(torch.rand(1, 1, 9, 9), tolerance=-1.0)


# ------------------------------------------------------------------------------------------------------------ what fa


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(lr.CheckpointError, match="does not exist"):
        load(tmp_path / "absent.safetensors")


def test_a_folder(file: Path, tmp_path: Path) -> None:
    assert load(file.parent).config["sigma"] == 0.1
    with pytest.raises(lr.CheckpointError, match="this is a folder"):
        load(tmp_path.parent)


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 100, b"PK\x03\x04 a pickle", b"\x80\x04\x95"])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(lr.CheckpointError, match="not a safetensors file"):
        load(path)


def test_a_foreign_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(save_bytes({"filters": torch.rand(3)}))
    with pytest.raises(lr.CheckpointError, match="not one that learnreg wrote"):
        load(path)


def test_every_truncation_is_noticed(file: Path) -> None:
    data = file.read_bytes()
    for length in range(0, len(data), 37):
        file.write_bytes(data[:length])
        with pytest.raises(lr.CheckpointError):
            load(file)


def test_every_flipped_byte_is_noticed(file: Path) -> None:
    data = file.read_bytes()
    padding = data[8 : 8 + int.from_bytes(data[:8], "little")].rstrip(b" ")
    silent = []
    for position in [*range(0, 8 + len(padding), 5), *range(8 + len(padding), len(data))]:
        damaged = bytearray(data)
        damaged[position] ^= 1
        file.write_bytes(bytes(damaged))
        try:
            load(file)
        except lr.CheckpointError:
            continue
        silent.append(position)
    assert silent == []


def test_another_format_version(file: Path) -> None:
    rewrite(file, format_version=FORMAT_VERSION + 1)
    with pytest.raises(lr.CheckpointError, match=f"format {FORMAT_VERSION + 1}; .* format {FORMAT_VERSION}"):
        load(file)


def test_an_unknown_regularizer(file: Path) -> None:
    rewrite(file, regularizer={"name": "os.system", "config": {}})
    with pytest.raises(lr.CheckpointError, match=r"'os.system' is not registered.*register\('os.system', cls\) before"):
        load(file)


@pytest.mark.parametrize("config", [{}, {"filters": "many"}, {"filters": 5, "size": 3, "potential": "none"}])
def test_a_config_that_rebuilds_nothing(file: Path, config: dict[str, object]) -> None:
    rewrite(file, regularizer={"name": "fields-of-experts", "config": config})
    with pytest.raises(lr.CheckpointError, match="cannot be rebuilt"):
        load(file)


@pytest.mark.parametrize("changes", [{"regularizer": "tv"}, {"config": 3}, {"regularizer": {"name": ["tv"]}}])
def test_a_description_of_another_shape(file: Path, changes: dict[str, object]) -> None:
    rewrite(file, **changes)
    with pytest.raises(lr.CheckpointError, match="cannot be rebuilt"):
        load(file)


def test_other_parameters_than_expected(file: Path) -> None:
    state = FieldsOfExperts(filters=5, size=3).state_dict()
    for change, message in (
        ({"log_weights": None}, "missing: log_weights"),
        ({"surplus": torch.zeros(1)}, "unknown: surplus"),
        ({"log_weights": torch.zeros(4)}, r"log_weights has shape \(4,\), expected \(5,\)"),
        ({"log_weights": torch.zeros(5, dtype=torch.int64)}, "log_weights has dtype torch.int64"),
        ({"log_weights": torch.full((5,), torch.nan)}, "log_weights has NaN"),
    ):
        rewrite(file, {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None})
        with pytest.raises(lr.CheckpointError, match=message):
            load(file)


# ---------------------------------------------------------------------------------------------------------------- sav


def test_nan_parameters_are_not_saved(file: Path) -> None:
    before = file.read_bytes()
    regularizer = TotalVariation()
    with torch.no_grad():
        regularizer.log_weight.fill_(torch.nan)
    with pytest.raises(lr.CheckpointError, match="log_weight has NaN"):
        save_model(file, regularizer)
    assert file.read_bytes() == before


class OwnDataTerm(lr.LeastSquares):
    """Not one that a file can name."""


def test_what_cannot_be_stored(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    shape = (1, 6, 6)
    term = OwnDataTerm()
    box = lr.Box(torch.zeros(shape), torch.ones(shape))
    for problem, config, message in (
        (AnalysisOperator(Identity(shape), lr.Huber(0.1)), {}, "AnalysisOperator cannot be stored"),
        (TotalVariation(), {"ridge": 1}, "keys ridge are taken"),
        (lr.LowerLevelProblem(Identity(shape), TotalVariation(), data_term=term), {}, "data term OwnDataTerm"),
        (Scaled(AnalysisOperator(Identity(shape), lr.Huber(0.1))), {}, "AnalysisOperator cannot be stored"),
        (lr.LowerLevelProblem(Identity(shape), TotalVariation(), constraint=box), {}, "Box"),
    ):
        with pytest.raises(lr.ConfigError, match=message):
            save_model(path, problem, config)
        assert not path.exists()


def test_a_full_disk_leaves_the_old_file(file: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    pytest.importorskip("resource")
    before = file.read_bytes()
    code = f"""
import resource, sys
from learnreg import CheckpointError
from learnreg.regularizers import FieldsOfExperts
from learnreg.models.model import save_model
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_model({str(file)!r}, FieldsOfExperts(filters=100, size=7))
except CheckpointError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot be written (File too large)" in done.stdout
    assert file.read_bytes() == before
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]
