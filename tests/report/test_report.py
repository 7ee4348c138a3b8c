"""The report: a page of pictures and numbers with figures beside it."""

from __future__ import annotations

import base64
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import learnreg as lr
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts, Regularizer, Reweighted, RidgeRegularizer, TotalVariation
from learnreg.report.comparison import Compared, Comparison, Quality, quality
from learnreg.report.lower_level import conditioning
from learnreg.report.noise_sweep import levels_around, noise_sweep
from learnreg.report.report import Report, certificate_statistics, write_report
from learnreg.result import History

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


def comparison(generator: torch.Generator, count: int = 2, tv: bool = True) -> Comparison:
    def image(name: str) -> Compared:
        clean = torch.rand(1, 20, 30, generator=generator)
        levels = (("input", 0.1), ("tv", 0.05), ("learned", 0.02))
        others: dict[str, Any] = {what: clean + s * torch.randn(clean.shape, generator=generator) for what, s in levels}
        if not tv:
            others["tv"] = None
        found = {what: quality(x, clean) for what, x in others.items() if x is not None}
        history = History.of(
            [(1, 5, torch.tensor([0.1]), torch.ones(1)), (2, 9, torch.tensor([1e-4]), torch.ones(1))], 1
        )
        return Compared(
            name, clean, **others, quality=found, error_bound=1e-4, certified=True, histories={"learned": history},
            minimiser=others["learned"],
        )  # fmt: skip

    return Comparison(tuple(image(f"<image {i}>") for i in range(count)), "noisy", "at sigma 25/255", 0, 1e-4)


def pictures(page: str) -> list[np.ndarray]:
    image = pytest.importorskip("PIL.Image")
    embedded = re.findall(r'src="data:image/(?:webp|png);base64,([^"]+)"', page)
    return [np.asarray(image.open(io.BytesIO(base64.b64decode(data))).convert("L")) for data in embedded]


LOGGED = [{"step": i, "loss": 3.0 - 0.1 * i, "certified": i != 0, "relative_error_bound": 0.1 * i} for i in range(5)]


@pytest.mark.parametrize(
    ("regularizer", "rows", "missing"),
    [
        (FieldsOfExperts(filters=11, size=3), LOGGED, set()),
        (TotalVariation(dimensions=3), [], {"filters", "learning_curve"}),
        (Reweighted(FieldsOfExperts(filters=2, size=3)), LOGGED, set()),
    ],
)
def test_the_report(
    tmp_path: Path, generator: torch.Generator, regularizer: Regularizer, rows: list[dict[str, Any]], missing: set[str]
) -> None:
    shown = comparison(generator)
    report = Report("Learned <it>", shown, regularizer, rows, {"data": "<natural>", "minutes": 5.0}, {"updates": 5})
    path = write_report(tmp_path, report)
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report.html"
    drawn = {"comparison-1", "comparison-2", "learning_curve", "filters", "potentials", "spectrum", "convergence"}
    drawn |= {"weights"} if isinstance(regularizer, Reweighted) else set()
    files = {file.stem: file.read_bytes() for file in (tmp_path / "figures").iterdir()}
    assert set(files) == drawn - missing
    assert all(content.startswith(b"%PDF") for content in files.values())
    assert "&lt;image 0&gt;" in page
    assert "<image 0>" not in page
    assert not re.search(r'(src|href)="(?!data:)', page), "the page refers to no other file"
    for what in ("input", "tv", "learned"):
        assert f"{shown.mean(what).psnr:.2f}" in page
    assert ("80.0 %" in page) == bool(rows)
    found = pictures(page)
    assert len(found) == len(files), "each picture once"
    assert len({picture.tobytes() for picture in found}) == len(found)
    assert all(picture.std() > 5 for picture in found), "no picture is blank"


def test_a_report_of_less(tmp_path: Path, generator: torch.Generator) -> None:
    """Without total variation, of fewer images than the one before, on samples that were trained on."""
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "comparison-3.pdf").touch()
    shown = comparison(generator, 1, tv=False)
    notes = ["Early stopping: of 9 updates ..."]
    path = write_report(tmp_path, Report("T", shown, TotalVariation(dimensions=3), held_out=False, notes=notes))
    page = path.read_text(encoding="utf-8")
    assert "total variation" not in page.split("<h2>Certificates")[0].replace("TotalVariation", "")
    assert "1 training image " in re.sub(r"\s+", " ", page)
    assert notes[0] in page
    assert not (tmp_path / "figures" / "comparison-3.pdf").exists()


def test_a_quality_without_ssim(tmp_path: Path, generator: torch.Generator) -> None:
    image = comparison(generator, 1).images[0]
    plain = Compared(
        **{**vars(image), "quality": {what: Quality(30.0, math.nan) for what in image.quality}},
    )
    shown = Comparison((plain,), "noisy", "", None, 1e-4)
    page = write_report(tmp_path, Report("T", shown, TotalVariation(dimensions=3))).read_text(encoding="utf-8")
    assert "nan" not in re.sub(r'src="[^"]*"', "", page)
    assert "–" in page
    assert "plus the index" not in page


def test_certificate_statistics() -> None:
    rows = [
        {"certified": True, "relative_error_bound": 0.1},
        {"certified": True, "relative_error_bound": 0.3},
        {"certified": False, "relative_error_bound": 9.0},
        {"certified": True, "relative_error_bound": None},
        {"psnr": 28.0},
    ]
    found = certificate_statistics(rows)
    assert (found.count, found.share_certified, found.median_bound, found.largest_bound) == (4, 0.75, 0.3, math.inf)
    assert certificate_statistics([]).share_certified is None


def test_the_condition_number_bounds_that_of_dense_hessians() -> None:
    problem = lr.LowerLevelProblem(Identity((1, 5, 5)), TotalVariation(0.2, smoothing=0.05).double(), ridge=0.1)
    found = conditioning(problem, torch.rand(1, 1, 5, 5).double())
    for x in (torch.zeros(25).double(), torch.rand(25).double()):
        H = torch.autograd.functional.hessian(
            lambda v: problem.energy(v.reshape(1, 1, 5, 5), torch.zeros(1, 1, 5, 5).double()).sum(), x
        )
        values = torch.linalg.eigvalsh(H)
        assert found.modulus <= float(values[0]) + 1e-12
        assert float(values[-1]) <= found.lipschitz
        assert float(values[-1] / values[0]) <= found.condition_number
    assert found.condition_number < 20 * float(values[-1] / values[0])


def test_a_chain_is_as_hard_as_its_first_problem() -> None:
    R, b = Reweighted(TotalVariation(0.1)), torch.rand(1, 1, 8, 8)
    first, chain = (lr.LowerLevelProblem(Identity((1, 8, 8)), r, ridge=0.01) for r in (R.base, R))
    assert conditioning(chain, b) == conditioning(first, b)


def test_a_sweep_over_noise_levels() -> None:
    """Total variation at the level of its tuning is what it was; every level has the same noise but for its size."""
    clean = [torch.full((1, 12, 12), 0.5), torch.rand(1, 12, 12)]
    levels = levels_around([0.1, 0.2])
    assert (levels[0], levels[-1]) == pytest.approx((0.05, 0.4))
    R = RidgeRegularizer((2,), 3, 5, noise_conditioned=True)
    found = noise_sweep(R, (TotalVariation(0.1), 0.1), clean, [0.1, 0.2])
    assert set(found.psnr) == {"learned", "total variation", "noisy"}
    noisy = found.psnr["noisy"]
    assert noisy[0] - noisy[-1] == pytest.approx(20 * math.log10(8), abs=1e-3)
    assert found.psnr["total variation"][0] > noisy[0]
