"""Figures: of every regularizer, of images, of runs; what they draw is held against its definition."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import registry
import torch
from registered.regularizers import REGULARIZERS
from torch import Tensor

import learnreg as lr
from learnreg.operators import Identity
from learnreg.plot.curves import _least_error, _running_mean
from learnreg.plot.images import most_informative
from learnreg.plot.spectra import spectrum_of
from learnreg.plot.style import figure_file, new_figure, number_decades
from learnreg.plot.weights import weights_at
from learnreg.regularizers import FieldsOfExperts, GeneralisedTikhonov, Reweighted, TotalVariation

pytest.importorskip("matplotlib")

SHOWN = sorted(set(REGULARIZERS) - {"given-by-value"})


# --------------------------------------------------------------------------------------------------------- regularizers


@pytest.mark.parametrize("name", SHOWN)
def test_potentials_are_those_of_the_regularizer(name: str) -> None:
    """Along every curve: its values are the integral of its slopes, which are monotone where R is convex."""
    shown = REGULARIZERS[name]().pictures()
    assert shown is not None
    assert shown.responses is not None
    assert shown.slopes is not None
    assert shown.values is not None
    steps = shown.responses.diff()
    assert torch.allclose(shown.values.diff(dim=1), 0.5 * steps * (shown.slopes[:, 1:] + shown.slopes[:, :-1]))
    assert bool((shown.values[:, len(shown.responses) // 2] == 0).all())
    assert bool(torch.isfinite(shown.slopes).all())
    if shown.filters is not None:
        assert shown.weights is not None
        assert len(shown.filters) == len(shown.weights) == len(shown.slopes)


def test_a_potential_is_what_one_filter_adds() -> None:
    """R of an image of one pixel that a filter of one pixel sees, less R of zero, at each response."""
    R = FieldsOfExperts.from_arrays(torch.tensor([[[2.0]]]).double(), torch.tensor([0.7]), torch.tensor([0.3]))
    shown = R.pictures()
    assert shown.responses is not None
    x = (shown.responses / 2.0).reshape(-1, 1, 1, 1)  # so that w x / ‖w‖ = t, times ‖w‖ = 2
    with torch.no_grad():
        expected = R.value(2.0 * x)
    assert torch.allclose(shown.values, expected[None], rtol=1e-3, atol=1e-5)


def test_every_drawing_of_a_family() -> None:
    for name in ("RidgeRegularizer", "InputConvexNetwork", "TotalVariation", "FieldsOfExperts-colours"):
        R = REGULARIZERS[name]()
        assert len(lr.plot.filters(R).axes) >= 1
        assert len(lr.plot.potentials(R).axes) == 2
        assert len(lr.plot.spectrum(R, 16).axes) >= 3


def test_what_cannot_be_drawn_is_said() -> None:
    own = REGULARIZERS["given-by-value"]()
    for draw in (lr.plot.filters, lr.plot.potentials):
        with pytest.raises(lr.ConfigError, match=r"see plot\.spectrum"):
            draw(own)
    with pytest.raises(lr.ConfigError, match="has no filters"):
        lr.plot.filters(TotalVariation(dimensions=3))
    with pytest.raises(lr.ConfigError, match="expected a Regularizer"):
        lr.plot.filters("ridge")  # type: ignore[arg-type]


def test_the_spectrum_of_total_variation_is_known() -> None:
    """D^T D of forward differences is the Laplacian, 4 sin²(pi f) for each direction; ∇²R is l/v times it."""
    n = 24
    found = spectrum_of(TotalVariation(weight=0.3, smoothing=0.1), n)
    squares = 4.0 * np.sin(np.pi * (np.arange(n) - n // 2) / n) ** 2
    expected = torch.from_numpy(squares[:, None] + squares[None, :])
    assert torch.allclose(found.gram, expected, atol=1e-9)
    assert torch.allclose(found.curvature, 3.0 * expected, atol=1e-6)


@pytest.mark.parametrize("name", ["FieldsOfExperts", "FieldsOfExperts-complex", "RidgeRegularizer-signals"])
def test_the_spectrum_is_that_of_all_filters(name: str) -> None:
    """The sum of their squared Fourier transforms."""
    R = REGULARIZERS[name]()
    n = 16
    filters = R.pictures().filters[:, 0]  # type: ignore[union-attr, index]
    if R.image_dimensions == 1:
        filters = filters[:, 0]
    axes = tuple(range(1, filters.dim()))
    responses = torch.fft.fftn(filters, (n,) * len(axes), axes)
    expected = torch.fft.fftshift(responses.abs().square().sum(0))
    assert torch.allclose(spectrum_of(R, n).gram, expected, atol=1e-9)


def test_a_quadratic_regularizer_has_one_spectrum() -> None:
    R = GeneralisedTikhonov(4, 3, weight=2.0).double()
    found = spectrum_of(R, 16)
    assert torch.allclose(found.curvature, 0.5 * found.gram, atol=1e-9), "all weights are 2/4"


@pytest.mark.parametrize("weights", ["majorising", "free"])
def test_weights_are_those_of_the_next_solve(weights: str) -> None:
    """Of total variation 1 / (1 + f/s) at each pixel, f its density; of free ones what the network says."""
    torch.manual_seed(0)
    R = Reweighted(TotalVariation(0.3, smoothing=0.1), weights, scale=0.2)  # type: ignore[arg-type]
    x = registry.rand(1, 12, 10)
    found = weights_at(R, x)
    if weights == "majorising":
        forward = [torch.nn.functional.pad(x[0].diff(dim=d), (0, d, 0, 1 - d)) for d in (0, 1)]
        density = 0.3 * ((torch.stack(forward).square().sum(0) + 0.01).sqrt() - 0.1)
        assert torch.allclose(found[0], 1.0 / (1.0 + density / 0.06), rtol=1e-5)
    else:
        assert bool(((found > 0) & (found < 1)).all())
    panels = lr.plot.weights(R, x[0]).axes
    assert [axes.get_title() for axes in panels[:2]] == ["image", "weights"]
    assert np.allclose(panels[1].images[0].get_array(), found[0].numpy())


def test_weights_of_several_channels() -> None:
    """Those that vary most beside their mean."""
    R = Reweighted(FieldsOfExperts(4, 3), "majorising")
    found = weights_at(R, registry.rand(1, 12, 10))
    titles = [axes.get_title() for axes in lr.plot.weights(R, registry.rand(1, 12, 10), most=2).axes[:4]]
    order = found.flatten(1).std(1).argsort(descending=True).tolist()
    assert titles == ["image", "mean of 4 channels", f"channel {order[0]}", f"channel {order[1]}"]
    with pytest.raises(lr.ConfigError, match="FieldsOfExperts takes no weights"):
        lr.plot.weights(R.base, registry.rand(1, 3, 3))  # as large as its filters
    with pytest.raises(lr.ShapeError, match=r"got an image of shape .*expected 1 channels"):
        lr.plot.weights(R, registry.rand(3, 12, 10))
    assert torch.equal(spectrum_of(R, 16).gram, spectrum_of(R.base, 16).gram)  # type: ignore[arg-type]


class OfPixels(lr.Regularizer):
    """A weight for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.log_weights = torch.nn.Parameter(registry.rand(1, 12, 10))
        self.offset = torch.nn.Parameter(torch.zeros(3, 10))

    def value(self, x: Tensor) -> Tensor:
        return (self.log_weights.exp() * x.square()).sum((1, 2, 3))


def test_weights_of_pixels() -> None:
    R, x = OfPixels(), registry.rand(12, 10)
    panels = lr.plot.weights(R, x).axes
    assert [axes.get_title() for axes in panels[:2]] == ["image", "log_weights"]
    assert np.allclose(panels[1].images[0].get_array(), R.log_weights.detach()[0].numpy())
    with pytest.raises(lr.ConfigError, match="no parameter with a number for each pixel"):
        lr.plot.weights(R, x.T)


# --------------------------------------------------------------------------------------------------------------- images


def pair(shape: tuple[int, ...] = (1, 40, 56)) -> dict[str, Tensor]:
    """Two equal images but for a square of 8 pixels, and noise that both have."""
    clean = registry.rand(*shape)
    first, second = clean + 0.2 * registry.randn(*shape, seed=1), clean.clone()
    second[:, 20:28, 40:48] += 0.5
    return {"measured": first, "one": clean + 0.01, "two": second}


def test_the_box_is_where_reconstructions_differ() -> None:
    images = pair()
    assert most_informative([images["one"], images["two"]], 8) == (20, 40)
    figure = lr.plot.comparison(images, registry.rand(1, 40, 56), measured="measured", zoom=8)
    (box,) = figure.axes[1].patches
    assert (box.get_xy(), box.get_width()) == ((39.5, 19.5), 8)
    top = [axes.get_title() for axes in figure.axes[:4]]
    assert top == ["measured", "one", "two", "clean"]
    zoomed = figure.axes[8 + 2].images[0].get_array()
    assert np.array_equal(zoomed, images["two"][0, 20:28, 40:48].numpy())


def test_errors_have_one_scale() -> None:
    """That of the reconstructions, beside which the measured image may be far off."""
    images, clean = pair(), registry.rand(1, 40, 56)
    figure = lr.plot.comparison(images, clean, measured="measured", zoom=8)
    maps = [axes.images[0] for axes in figure.axes[4:7]]
    assert {m.get_clim() for m in maps} == {maps[0].get_clim()}
    low, high = maps[0].get_clim()
    errors = torch.cat([(images[name] - clean).flatten() for name in ("one", "two")]).abs()
    assert low == -high
    assert high == pytest.approx(float(errors.sort().values[math.ceil(0.995 * len(errors)) - 1]))
    assert np.allclose(maps[2].get_array(), (images["two"] - clean)[0].numpy())


@pytest.mark.parametrize("shape", [(3, 20, 30), (1, 8, 8), (20, 30)])
def test_images_of_every_kind_are_compared(shape: tuple[int, ...]) -> None:
    x = registry.rand(*shape)
    assert lr.plot.comparison({"one": x}, 0.5 * x).axes
    assert lr.plot.comparison({"one": x, "two": 0.9 * x}).axes


def test_images_that_cannot_be_compared() -> None:
    x = registry.rand(1, 9, 9)
    with pytest.raises(lr.ShapeError, match="images of different shapes"):
        lr.plot.comparison({"one": x, "two": registry.rand(1, 9, 8)})
    with pytest.raises(lr.ShapeError, match=r"one has shape \(2, 9, 9\), expected \(1 or 3"):
        lr.plot.comparison({"one": registry.rand(2, 9, 9)})
    for bad in ({}, {"one": x}):
        with pytest.raises(lr.ConfigError, match="measured='noisy'"):
            lr.plot.comparison(bad, measured="noisy")


# --------------------------------------------------------------------------------------------------------------- curves


def plain_rows(count: int) -> list[dict[str, object]]:
    return [{"step": i + 1, "loss": 2.0 + (-1) ** i, "seconds": 1.0} for i in range(count)]


def rows() -> list[dict[str, object]]:
    found = plain_rows(30)
    found[4] |= {"psnr": 29.0, "validation_loss": 1.5}
    found[7] |= {"psnr": 30.0, "validation_loss": 1.0}
    audit = {"relative_error_estimate": 0.05, "audit_reference_bound": 0.01, "certified": True}
    found[9] |= {"relative_error_bound": 0.0606, **audit}
    return found


def test_learning_curves_of_rows_folders_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()) + '{"torn', "utf-8")
    for run in (rows(), tmp_path, tmp_path / "metrics.jsonl"):
        titles = [axes.get_title() for axes in lr.plot.learning_curve(run).axes]
        assert len(titles) == 4
        assert "audits" in titles[-1]
    assert len(lr.plot.learning_curve(plain_rows(3)).axes) == 1
    for nothing in ([], [{"step": 1, "loss": None}]):
        with pytest.raises(lr.ConfigError, match="nothing was logged"):
            lr.plot.learning_curve(nothing)
    with pytest.raises(lr.ConfigError, match="cannot be read"):
        lr.plot.learning_curve(tmp_path / "nowhere")


@pytest.mark.parametrize("spread", [1.0, 100.0], ids=["linear", "logarithmic"])
def test_no_legend_lies_over_the_data(spread: float) -> None:
    logged = rows()
    for step in range(10, 30):
        logged[step] |= {**logged[9], "step": step + 1, "relative_error_bound": 0.0606 * spread}
    figure = lr.plot.learning_curve(logged)
    figure.canvas.draw()
    for axes in figure.axes:
        legend = axes.get_legend()
        assert axes.get_yscale() == ("log" if spread > 1 and "audits" in axes.get_title() else "linear")
        below = axes.transData.inverted().transform(legend.get_window_extent())[0, 1]
        drawn = [
            *(line.get_ydata() for line in axes.lines),
            *(c.get_paths()[0].vertices[:, 1] for c in axes.collections),
        ]
        assert below >= max(float(np.max(y)) for y in drawn)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [(0.006, 0.09, ["0.01", "0.02", "0.05"]), (1.5, 80.0, ["2", "5", "10", "20", "50"]), (1e-3, 1.0, None)],
)
def test_ticks_of_few_decades_are_plain_numbers(low: float, high: float, labels: list[str] | None) -> None:
    figure = new_figure(3.0, 3.0)
    axes = figure.subplots()
    axes.semilogy([0.0, 1.0], [low, high])
    axes.set_ylim(low, high)
    number_decades(axes)
    figure.canvas.draw()
    texts = [t.get_text() for t in axes.get_yticklabels(which="both") if low <= t.get_position()[1] <= high]
    shown = [text for text in texts if text]
    assert shown == labels if labels else all("10^" in text for text in shown)


def test_the_running_mean_is_one() -> None:
    values = [float(v) for v in np.random.default_rng(0).random(100)]
    found = _running_mean(values)
    assert found[50] == pytest.approx(np.mean(values[48:53]))
    assert found[0] == pytest.approx(np.mean(values[:3]))
    assert len(found) == 100


def test_the_true_error_is_between_its_bounds() -> None:
    """g at the distance d from one that is at most r from the exact gradient, relative to the norm of that one."""
    g = torch.randn(5, generator=torch.Generator().manual_seed(0)).double()
    exact, audited = g + 0.2 * torch.ones(5).double(), g + 0.19 * torch.ones(5).double()
    norm = float(audited.norm())
    row = {
        "relative_error_estimate": float((g - audited).norm()) / norm,
        "audit_reference_bound": float((exact - audited).norm()) / norm,
    }
    true = float((g - exact).norm() / exact.norm())
    upper = sum(row.values()) / (1.0 - row["audit_reference_bound"])
    assert 0 < _least_error(row) <= true <= upper


def test_convergence_and_noise_levels() -> None:
    problem = lr.LowerLevelProblem(Identity((1, 8, 8)), TotalVariation(0.1))
    solution = lr.solve(problem, registry.rand(2, 1, 8, 8), 1e-3)
    figure = lr.plot.convergence({"tv": solution}, 1e-3)
    line = figure.axes[0].lines[0]
    finite = solution.history.error_bound.amax(1)
    assert np.allclose(line.get_ydata(), finite[finite.isfinite()].numpy())
    with pytest.raises(lr.ConfigError, match="no solve has a finite"):
        lr.plot.convergence({})
    assert lr.plot.noise_levels([0.1, 0.2], {"tv": [30.0, 28.0]}, [0.1]).axes
    with pytest.raises(lr.ConfigError, match="2 levels"):
        lr.plot.noise_levels([0.1, 0.2], {"tv": [30.0]})


def test_files_are_the_same_for_the_same_figure() -> None:
    first, second = (figure_file(lr.plot.learning_curve(plain_rows(3)), "pdf") for _ in range(2))
    assert first == second
    assert first.startswith(b"%PDF")


# ---------------------------------------------------------------------------------------------------------- maps, style


def images_of(figure: Any) -> list[Any]:
    return [axes.images[0] for axes in figure.axes if axes.images]


def test_maps_show_the_numbers_on_their_scales() -> None:
    weights = torch.tensor([[0.1, 0.2, 0.4]], dtype=torch.float64)
    figure = lr.plot.maps({"a": weights, "b": -2.0 * weights[None]}, signed=True)
    shown = images_of(figure)
    assert [image.get_clim() for image in shown] == [(-0.4, 0.4), (-0.8, 0.8)]
    assert np.array_equal(shown[0].get_array(), weights.numpy())
    (common,) = {image.get_clim() for image in images_of(lr.plot.maps({"a": weights, "b": weights + 1}, window=(0, 2)))}
    assert common == (0, 2)
    logarithmic = images_of(lr.plot.maps({"a": weights}, logarithmic=True))[0]
    assert float(logarithmic.norm(0.2)) == pytest.approx(0.5)  # in the middle of 0.1 and 0.4


def test_maps_refuse_what_they_cannot_show() -> None:
    with pytest.raises(lr.ConfigError, match="expected some"):
        lr.plot.maps({})
    with pytest.raises(lr.ConfigError, match="numbers <= 0"):
        lr.plot.maps({"a": torch.zeros(2, 2)}, logarithmic=True)
    with pytest.raises(lr.ConfigError, match="on one scale"):
        lr.plot.maps({"a": torch.ones(2, 2)}, signed=True, logarithmic=True)
    with pytest.raises(lr.ShapeError, match=r"\(2, 3, 3\)"):
        lr.plot.maps({"a": torch.ones(2, 3, 3)})


def test_the_style_ends_with_its_block() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    with lr.plot.paper_style():
        assert not mpl.rcParams["axes.spines.top"]
    assert dict(mpl.rcParams) == before
