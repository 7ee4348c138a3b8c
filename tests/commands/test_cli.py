"""The command line: what each command prints, and the exit code of every error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.entry_point import Result, assert_complaint

import learnreg as lr
from learnreg.commands import doctor, reconstruct_images
from learnreg.commands.image_outputs import stored_error
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts, Reweighted, RidgeRegularizer

pytest.importorskip("skimage.metrics")

FAST = ("--tolerance", "1e-2")


# -------------------------------------------------------------------------------------------------------------- general


def test_version_and_help(learnreg: Any) -> None:
    assert learnreg("--version").out == f"learnreg {lr.__version__}\n"
    found = learnreg("--help")
    assert found.code == 0
    assert all(command in found.out for command in ("train", "reconstruct", "evaluate", "accuracy", "doctor"))
    assert "[default: 25/255]" in " ".join(learnreg("train", "denoise", "--help").out.split())
    for command in ((), ("train",), ("train", "denoise"), ("evaluate",), ("doctor",)):
        assert learnreg(*command, "-h").out == learnreg(*command, "--help").out


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate",),
        ("nonsense",),
        ("train", "nonsense"),
        ("doctor", "--nonsense"),
        ("evaluate", "m", "--data", "d", "--seed", "x"),
        ("train", "denoise", "--fitlers", "3"),
    ],
)
def test_usage_errors(learnreg: Any, arguments: tuple[str, ...]) -> None:
    found = learnreg(*arguments)
    assert found.code == 2
    assert found.out == ""
    assert found.err


@pytest.mark.parametrize(
    ("arguments", "suggested"),
    [
        (("train", "denoise", "--fitlers", "3"), "--filters"),
        (("train", "denoise", "--batch_size", "3"), "--batch-size"),
        (("train", "denoise", "--angles", "3"), "learnreg train ct has it"),
        (("train", "ct", "--sigma", "3"), "learnreg train denoise has it"),
        (("train", "denois"), "denoise"),
        (("doctr",), "doctor"),
        (("evaluate", "--jsn"), "--json"),
    ],
)
def test_mistyped_names_are_suggested(learnreg: Any, arguments: tuple[str, ...], suggested: str) -> None:
    found = learnreg(*arguments)
    assert found.code == 2
    assert suggested in found.err


HELP = (("--help",), ("-h",), ("--version",), ("train", "--help"), ("evaluate", "--help"), ("reconstruct", "-h"))


def test_help_does_not_wait_for_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from typer.testing import CliRunner
from learnreg.commands.cli import app
codes = [CliRunner().invoke(app, arguments).exit_code for arguments in {(*HELP, ("nonsense",), ("train", "x"))}]
print(*codes, *({{"torch", "numpy"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.split() == ["0"] * len(HELP) + ["2", "2"], done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (lr.ConfigError("no\nsuch option"), 2),
        (lr.DataError("no such folder"), 3),
        (lr.OperatorError("no such adjoint"), 4),
        (lr.ShapeError("no such shape"), 4),
        (lr.AssumptionError("no such modulus"), 5),
        (lr.SolverError("no such solution"), 5),
        (lr.CheckpointError("no such model"), 6),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(learnreg: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(doctor, "examine", fail)
    assert_complaint(learnreg("doctor"), code, "interrupted" if code == 130 else "no such")


def test_debugging_shows_the_traceback(learnreg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEARNREG_DEBUG", "1")
    with pytest.raises(lr.CheckpointError):
        learnreg("evaluate", "no-such-model", "--data", "nowhere")
    monkeypatch.setenv("LEARNREG_DEBUG", "0")
    assert learnreg("evaluate", "no-such-model", "--data", "nowhere").code == 6
    with pytest.raises(lr.CheckpointError):
        learnreg("--debug", "evaluate", "no-such-model", "--data", "nowhere")


def test_the_installed_command(tmp_path: Path) -> None:
    """Once as a process of its own; the other tests call the same entry point."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LEARNREG_DEBUG": ""}
    command = [sys.executable, "-m", "learnreg.commands.cli", "evaluate", "absent.safetensors", "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert_complaint(Result(done.returncode, done.stdout, done.stderr), 6, "absent.safetensors", "does not exist")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory"),
        (PermissionError(13, "Permission denied", "/secret/x"), "/secret/x: Permission denied."),
    ],
)
def test_what_the_system_refuses(learnreg: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(doctor, "examine", fail)
    found = learnreg("doctor")
    assert_complaint(found, found.code, text)
    assert found.code in (1, 3)


def test_errors_that_nobody_foresaw_show_where_they_are(learnreg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a fault of learnreg")

    monkeypatch.setattr(doctor, "examine", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        learnreg("doctor")


# ------------------------------------------------------------------------------------------------------------- evaluate


def test_evaluate(learnreg: Any, model: Path, images: Path) -> None:
    found = learnreg("evaluate", model, "--data", images, "--seed", "4", *FAST, "--json")
    assert found.code == 0, found.err
    assert {"psnr", "ssim", "psnr_input", "n", "sigma", "seed", "seconds_per_image"} <= set(found.json)
    assert found.json["n"] == 2
    assert found.json["seed"] == 4
    assert found.json["sigma"] == 25 / 255, "the documented default, whatever the model was trained for"
    assert "PSNR" in found.err
    other = learnreg("evaluate", model, "--data", images, "--sigma", "25/255", *FAST)
    assert "sigma 25/255" in other.out
    assert other.err == ""


def test_evaluate_fails(learnreg: Any, model: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_complaint(learnreg("evaluate", model, "--data", tmp_path / "absent"), 3, "does not exist")
    assert_complaint(learnreg("evaluate", model, "--data", tmp_path / "empty"), 3, "holds no images")
    assert_complaint(learnreg("evaluate", model, "--data", images, "--sigma", "25"), 2, "25/255")
    assert_complaint(learnreg("evaluate", model, "--data", images, "--tolerance", "-1"), 2, "tolerance=-1")
    assert_complaint(learnreg("evaluate", model, "--data", images, "--seed", "-1"), 2, "seed=-1")
    assert_complaint(learnreg("evaluate", "no-such-model", "--data", images), 6, "Shipped models")
    (images / "b.png").write_bytes((images / "b.png").read_bytes()[:50])
    assert_complaint(learnreg("evaluate", model, "--data", images, *FAST), 3, "b.png", "its header promises")


def test_a_damaged_model(learnreg: Any, model: Path, images: Path) -> None:
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(bytes(data))
    assert_complaint(learnreg("evaluate", model, "--data", images), 6, "SHA-256")
    model.write_bytes(bytes(data[:-1]))
    assert_complaint(learnreg("reconstruct", model, images / "a.png", "--out", images / "out"), 6, "truncated")


# ---------------------------------------------------------------------------------------------------------- reconstruct


def test_reconstruct(learnreg: Any, model: Path, images: Path, tmp_path: Path) -> None:
    inputs = sorted(images.iterdir())
    found = learnreg("reconstruct", model, *inputs, "--out", tmp_path / "out", *FAST, "--json")
    assert found.code == 0, found.err
    rows = found.json["rows"]
    keys = {"input", "output", "error_bound", "bound_kind", "certified", "status", "seconds", "tolerance", "files"}
    keys |= {"notes", "warnings", "certified_scope", "sigma"}
    assert [set(row) for row in rows] == 2 * [keys]
    assert all(row["bound_kind"] == "rigorous" and row["status"] == "CONVERGED" for row in rows)
    assert all(0 < row["error_bound"] <= 1e-2 for row in rows)
    assert [row["input"] for row in rows] == [str(path) for path in inputs]
    assert all(Path(row["output"]).is_file() and row["certified"] for row in rows)
    assert len(learnreg("reconstruct", model, *inputs, "--out", tmp_path / "out", *FAST).out.splitlines()) == 2


def test_reconstruct_says_what_the_error_is(
    learnreg: Any, model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def solve(problem: lr.LowerLevelProblem, b: torch.Tensor, tolerance: float) -> lr.Solution:
        x = b.clamp(0, 1)
        return lr.Solution(x, x, torch.full((1,), torch.inf), kind, lr.Status.STAGNATED, 1, 2, "pdhg")

    monkeypatch.setattr(reconstruct_images, "solve", solve)
    arguments = ("reconstruct", model, images / "a.png", "--out", tmp_path / "out")
    kind: Any = "estimate"
    (row,) = learnreg(*arguments, "--json").json["rows"]
    assert (row["error_bound"], row["bound_kind"], row["certified"]) == (None, "estimate", False)
    assert row["status"] == "STAGNATED"
    assert "estimated error" in learnreg(*arguments).out
    kind = "none"
    assert "unknown error" in learnreg(*arguments).out


def test_chains_are_certified_given_their_weights(learnreg: Any, images: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    chain = Reweighted(FieldsOfExperts(2, 3), "free", 1, features=2, generator=generator, carry_errors=False)
    lr.save_model(tmp_path / "chain.safetensors", chain, {"sigma": 0.1})
    arguments = ("reconstruct", tmp_path / "chain.safetensors", images / "a.png", "--out", tmp_path / "out", *FAST)
    (row,) = learnreg(*arguments, "--json").json["rows"]
    assert (row["certified"], row["certified_scope"], row["bound_kind"]) == (False, "given weights", "rigorous")
    assert 0 < row["error_bound"] <= 1e-2
    assert "the minimiser of the model's last problem, given its weights" in learnreg(*arguments).out
    evaluation = ("evaluate", tmp_path / "chain.safetensors", "--data", images, *FAST)
    assert "certified given the weights of the last problem" in learnreg(*evaluation).out
    found = learnreg(*evaluation, "--json").json
    assert (found["certified"], {row["certified_scope"] for row in found["rows"]}) == (False, {"given weights"})


def test_rounded_inputs_leave_what_is_known_of_them() -> None:
    """Exact chains and local minimisers may move with their data by more than a bound for rounded data says."""
    generator = torch.Generator().manual_seed(0)
    chain = Reweighted(FieldsOfExperts(2, 3, boundary="reflect"), scale=10.0, steps=1)
    ridge = RidgeRegularizer(
        (4,), 3, 7, "convex-nonconvex", nonconvexity=2.0, depth=0.9, weight=0.01, generator=generator
    )
    for regularizer, minimiser, expected in (
        (FieldsOfExperts(2, 3), "global", ("rigorous", "global")),
        (chain, "global", ("rigorous", "given weights")),
        (ridge, "local", ("estimate", "local")),
    ):
        problem = lr.LowerLevelProblem(Identity((1, 8, 8)), regularizer.double(), minimiser=minimiser)  # type: ignore[arg-type]
        solution = lr.solve(problem, torch.full((1, 1, 8, 8), 0.5).double(), 1e-4)
        assert solution.locally_certified
        exact, rounded = (stored_error(solution, problem, problem.data_term, size) for size in (0.0, 1e-8))
        assert (exact[1].kind, exact[1].scope) == ("rigorous", minimiser)
        assert (rounded[1].kind, rounded[1].scope) == expected
        if minimiser == "global":
            assert rounded[0] >= float(rounded[1].bound.max()) + 0.9e-8


def test_reconstruct_fails(learnreg: Any, model: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    np.save(tmp_path / "nan.npy", np.full((9, 9), np.nan))
    assert_complaint(learnreg("reconstruct", model, tmp_path / "nan.npy", "--out", out), 3, "NaN")
    assert_complaint(learnreg("reconstruct", model, tmp_path / "absent.png", "--out", out), 3, "does not exist")
    assert_complaint(learnreg("reconstruct", model, images / "a.png", "--out", images), 2, "replace an input")
    found = learnreg("reconstruct", model, images / "a.png", "--out", out, "--tolerance", "0")
    assert_complaint(found, 2, "tolerance=0.0")
    assert not out.exists()


# --------------------------------------------------------------------------------------------------------------- doctor


def test_doctor(learnreg: Any) -> None:
    found = learnreg("doctor", "--json")
    assert found.code == 0, found.err
    assert found.json["ok"]
    assert found.json["self_test"]["ok"]
    assert found.json["torch"]["version"] == torch.__version__
    assert found.json["packages"]["torch"]["version"]
    assert found.json["packages"]["odl"]["extra"] == "odl"
    assert "self-test: passed, certified" in learnreg("doctor").out


def test_doctor_finds_problems(learnreg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no BLAS")

    monkeypatch.setattr(doctor, "solve", fail)
    monkeypatch.setattr(doctor, "_scratch_folders", lambda: ["/absent"])
    installed = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name in ("tqdm", "odl") else installed(name))
    found = learnreg("doctor", "--json")
    assert found.code == 1
    assert not found.json["ok"]
    assert found.json["problems"] == [
        "tqdm is missing. Install it with: pip install tqdm",
        "/absent is not writable.",
        "the self-test failed: RuntimeError: no BLAS",
    ]
    assert "odl: missing (pip install 'learnreg[odl]')" in found.err
