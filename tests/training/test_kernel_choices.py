"""Later processes use the convolution kernels that the first one measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from learnreg.convolutions import correlation
from learnreg.convolutions.correlation import adopt_kernels, chosen_kernels
from learnreg.training.kernel_choices import adopt_measured, remember_measured

FIRST = {"correlate 3 3 3 9 9 torch.float32 1": "windows-product", "adjoint 3 3 3 9 9 torch.float64 1": "rows-product"}


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """One that has a cache folder and measured nothing so far."""
    monkeypatch.setenv("LEARNREG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(correlation, "_choices", {})
    return monkeypatch


def test_the_first_measurement_stays(process: pytest.MonkeyPatch, tmp_path: Path) -> None:
    adopt_kernels(FIRST)
    remember_measured()
    process.setattr(correlation, "_choices", {})
    other = {name: "conv2d" if "correlate" in name else "conv_transpose2d" for name in FIRST}
    adopt_kernels({**other, "correlate 9 3 3 9 9 torch.float32 1": "conv2d"})
    remember_measured()
    adopt_measured()
    assert chosen_kernels() == {**FIRST, "correlate 9 3 3 9 9 torch.float32 1": "conv2d"}
    process.setenv("LEARNREG_CACHE", "")
    adopt_kernels(other)
    adopt_measured()
    assert chosen_kernels().items() >= other.items()


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"correlate": "conv2d", "a b": 1, "correlate 1 2 3 torch.float32 1": "conv2d"}',
                '{"correlate x 3 3 9 9 torch.float32 1": "conv2d", "correlate 3 3 3 9 9 torch.float32 1": "magic"}'],
)  # fmt: skip
def test_a_damaged_file_is_no_choice(process: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    adopt_kernels(FIRST)
    remember_measured()
    (path,) = (tmp_path / "cache").iterdir()
    path.write_text(content, encoding="utf-8")
    process.setattr(correlation, "_choices", {})
    adopt_measured()
    assert chosen_kernels() == {}
