"""Published ridge regularizers read from synthetic checkpoints of their layouts, against evaluations of their own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from truth.spectrum import norm_of

import learnreg as lr
from learnreg.convolutions.chain import ConvolutionChain
from learnreg.linear.norms import dense_matrix
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.models.model import load, save_model
from learnreg.operators import Identity
from learnreg.potentials.base import Potential
from learnreg.potentials.quadratic_spline import QuadraticSpline
from learnreg.regularizers import ImportedRidge, Scaled, import_ridge
from learnreg.testing import check_regularizer

SIDE, KNOTS = 12, 9


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def write(folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for number in (5, 10):
        content = {"epoch": number, "state_dict": {k: v.float() for k, v in state.items()}}
        torch.save(content, folder / "checkpoints" / f"checkpoint_{number}.pth")
    return folder


def crr(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    config = {
        "net_params": {"channels": [1, 2, 3], "kernel_size": 3},
        "activation_params": {"n_knots": KNOTS, "knots_range": 0.1},
    }
    coefficients = 0.02 * random(3, 3, KNOTS).cumsum(1)
    coefficients[1] = -torch.arange(KNOTS)  # falls: this channel has no potential
    state = {
        "lmbd": torch.tensor(6.0),
        "mu": torch.tensor(1.7),
        "L": torch.tensor(1.0),
        "conv_layer.conv_layers.0.parametrizations.weight.original": 0.3 * random(1, 2, 1, 3, 3),
        "conv_layer.conv_layers.1.parametrizations.weight.original": 0.3 * random(2, 3, 2, 3, 3),
        "activation.coefficients_vect": coefficients.flatten(),
    }
    return write(folder, config, state), config, {k: v.float().double() for k, v in state.items()}


def wcrr(folder: Path, rho: float = 1.0) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    config = {
        "multi_convolution": {"num_channels": [1, 2, 3], "size_kernels": [3, 5]},
        "spline_activation": {"num_knots": KNOTS, "x_min": -0.1, "x_max": 0.1},
        "spline_scaling": {"num_knots": 4},
        "noise_range": [0, 30],
        "noise_val": 25,
        "rho_wcvx": rho,
    }
    grid = torch.linspace(-0.1, 0.1, KNOTS, dtype=torch.float64)
    state = {
        "mu_": torch.tensor(1.1),
        "conv_layer.conv_layers.0.parametrizations.weight.original": random(1, 2, 1, 3, 3),
        "conv_layer.conv_layers.1.weight": random(2, 3, 2, 5, 5),
        "activation_cvx.coefficients": (0.4 * grid.clamp(-0.05, 0.05) + 0.005 * random(3, KNOTS))[None],
        "activation_ccv.coefficients": (0.9 * grid + 0.01 * random(4, KNOTS))[None],
        "spline_scaling.coefficients": 3.0 + 0.4 * random(5, 3, 4),
    }
    return write(folder, config, state), config, {k: v.float().double() for k, v in state.items()}


def interpolated(t: Tensor, low: float, high: float, values: Tensor) -> Tensor:
    """The linear spline of each channel through values at equal steps, constant beyond."""
    u = ((t - low) / (high - low) * (values.shape[1] - 1)).clamp(0, values.shape[1] - 1)
    left = u.floor().clamp(max=values.shape[1] - 2).long()
    per_channel = values.expand(t.shape[1], -1)
    pick = lambda i: torch.stack([per_channel[c][i[:, c]] for c in range(t.shape[1])], 1)  # noqa: E731
    return pick(left) * (1 - (u - left)) + pick(left + 1) * (u - left)


def crr_gradient(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """lmbd W^T f'(mu W x), as the layout is described."""
    kernels = [state[f"conv_layer.conv_layers.{i}.parametrizations.weight.original"] for i in range(2)]
    kernels = [k - k.mean((1, 2, 3), keepdim=True) for k in kernels]
    rises = state["activation.coefficients_vect"].reshape(3, KNOTS).diff(dim=1).clamp_min(0)
    rises[:, 0] = rises[:, -1] = 0
    values = F.pad(rises.cumsum(1), (1, 0))
    values = values - values[:, KNOTS // 2 : KNOTS // 2 + 1]
    t = F.conv2d(F.conv2d(state["mu"] * x, kernels[0], padding=1), kernels[1], padding=1)
    y = interpolated(t, -0.1, 0.1, values)
    back = F.conv_transpose2d(F.conv_transpose2d(y, kernels[1], padding=1), kernels[0], padding=1)
    return state["lmbd"] * back


def wcrr_gradient(x: Tensor, state: dict[str, Tensor], sigma: float, rho: float = 1.0) -> Tensor:
    """W^T f'(s W x)/s with W over the norm of its symbol, as the layout is described; sigma in grey levels."""
    first = state["conv_layer.conv_layers.0.parametrizations.weight.original"]
    first, second = first - first.mean((1, 2, 3), keepdim=True), state["conv_layer.conv_layers.1.weight"]
    apply = lambda v: F.conv2d(F.conv2d(v, first, padding=1), second, padding=2)  # noqa: E731
    transpose = lambda v: F.conv_transpose2d(F.conv_transpose2d(v, second, padding=2), first, padding=1)  # noqa: E731
    p = 3
    dirac = torch.zeros(1, 1, 4 * p + 1, 4 * p + 1, dtype=torch.float64)
    dirac[0, 0, 2 * p, 2 * p] = 1
    L = torch.fft.fft2(F.pad(transpose(apply(dirac)), (127 - p,) * 4)).abs().max()
    step = 0.2 / (KNOTS - 1)
    splines = []
    for part in ("cvx", "ccv"):
        slopes = (state[f"activation_{part}.coefficients"].diff(dim=1) / step).clamp(0, 1)
        slopes[:, 0] = slopes[:, -1] = 0
        values = F.pad(slopes.cumsum(1) * step, (1, 0))
        splines.append(0.5 * (values - values.flip(1)))
    values = state["mu_"].exp() * splines[0] - rho * splines[1]
    at = torch.full((1, 3, 1, 1), sigma, dtype=torch.float64)
    s = interpolated(at, 0.0, 30.0, state["spline_scaling.coefficients"]).exp() / (sigma + 1e-5)
    return transpose(interpolated(s * apply(x) / L.sqrt(), -0.1, 0.1, values) / s) / L.sqrt()


def along(gradient: Any, x: Tensor) -> float:
    """The integral of a gradient from 0 to x, by the trapezoidal rule on a fine grid."""
    at = torch.linspace(0, 1, 2001, dtype=torch.float64)
    slopes = (gradient(at[:, None, None, None] * x) * x).flatten(1).sum(1)
    return float(torch.trapezoid(slopes, at))


def energy_and_gradient(R: ImportedRidge, x: Tensor) -> tuple[float, Tensor]:
    problem = LowerLevelProblem(Identity((1, *x.shape[2:])), R)
    x = x.clone().requires_grad_()
    energy = problem.energy(x, x.detach())[0]
    return float(energy.detach()), torch.autograd.grad(energy, x)[0]


def test_crr_is_the_published_regularizer(tmp_path: Path) -> None:
    folder, _, state = crr(tmp_path / "model")
    R, x = import_ridge(folder), 0.3 * random(7, 1, 1, SIDE, SIDE + 3)
    energy, gradient = energy_and_gradient(R, x)
    expected = crr_gradient(x, state)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-12
    assert energy == pytest.approx(along(lambda v: crr_gradient(v, state), x), rel=1e-5)
    assert tuple(R.bends.shape) == (2, KNOTS - 1)  # without the channel that has no potential
    assert R.potential().convex
    assert R.at(0.1) is R
    changed = import_ridge(folder / "checkpoints" / "checkpoint_5.pth", weight=2.0, scale=0.5)
    state |= {"lmbd": torch.tensor(2.0), "mu": torch.tensor(0.5)}
    torch.testing.assert_close(energy_and_gradient(changed, x)[1], crr_gradient(x, state), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_wcrr_is_the_published_regularizer(tmp_path: Path, rho: float) -> None:
    folder, _, state = wcrr(tmp_path / "model", rho)
    R, x = import_ridge(folder), 0.5 * random(8, 1, 1, SIDE, SIDE + 3)
    for sigma, at in ((25.0, R), (4.0, R.at(4.0 / 255.0)), (30.0, R.at(30.0 / 255.0))):
        energy, gradient = energy_and_gradient(at, x)
        expected = wcrr_gradient(x, state, sigma, rho)
        assert float((gradient - expected).norm() / expected.norm()) < 1e-10
        assert energy == pytest.approx(along(lambda v, s=sigma: wcrr_gradient(v, state, s, rho), x), rel=1e-5)
    assert R.potential().convex == (rho == 0.0)
    assert float(torch.as_tensor(R.potential().concavity).max()) <= rho * (1 + 1e-11)
    with pytest.raises(lr.ConfigError, match="noise level"):
        R.at(0.5)


def test_composed_filters_differ_near_the_border_alone(tmp_path: Path) -> None:
    folder, _, _ = crr(tmp_path / "model")
    x = 0.3 * random(9, 1, 1, SIDE, SIDE)
    chain, bank = (import_ridge(folder, boundary=b) for b in ("chain", "zero"))
    one, other = (R.saddle_terms((1, SIDE, SIDE)).operator(x) for R in (chain, bank))
    torch.testing.assert_close(one[..., 2:-2, 2:-2], other[..., 2:-2, 2:-2], rtol=1e-12, atol=1e-13)
    assert float((one - other).abs().max()) > 1e-3


@pytest.mark.parametrize("layout", [crr, wcrr])
def test_keeps_the_contract_of_regularizers(tmp_path: Path, layout: Any) -> None:
    R = import_ridge(layout(tmp_path / "model")[0])
    assert check_regularizer(R, (1, SIDE, SIDE)).ok


@pytest.mark.parametrize(
    ("layout", "solver"),
    [(crr, "lbfgs"), (crr, "pdhg"), (crr, "newton-cg"), (wcrr, "lbfgs"), (wcrr, "newton-cg")],
)
def test_reconstructions_are_certified(tmp_path: Path, layout: Any, solver: str) -> None:
    weight = 0.3 if layout is wcrr else None
    R = import_ridge(layout(tmp_path / "model")[0], weight=weight)
    b = 0.5 + 0.3 * random(11, 2, 1, SIDE, SIDE)
    problem = LowerLevelProblem(Identity((1, SIDE, SIDE)), R)
    solution = lr.solve(problem, b, 1e-6, solver=solver)
    exact = lr.solve(problem, b, 1e-10).x
    assert solution.certified
    assert bool(solution.status.converged)
    error = (solution.x - exact).flatten(1).norm(dim=1) / SIDE
    assert bool((error <= solution.error_bound + 1e-10).all())
    assert float(solution.error_bound.max()) <= 1e-6


@pytest.mark.parametrize("layout", [crr, wcrr])
def test_the_gradient_of_a_factor_is_certified(tmp_path: Path, layout: Any) -> None:
    R = Scaled(import_ridge(layout(tmp_path / "model")[0], weight=0.05), 1.3).double()
    x_true = 0.5 + 0.3 * random(13, 1, 1, SIDE, SIDE)
    b = x_true + 0.1 * random(14, 1, 1, SIDE, SIDE)
    problem = LowerLevelProblem(Identity((1, SIDE, SIDE)), R)
    result = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=1e-4)
    h, losses = 1e-4, []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            R.log_factor.add_(sign * h)
            losses.append(0.5 * float((lr.solve(problem, b, 1e-11).x - x_true).square().sum()))
            R.log_factor.sub_(sign * h)
    difference = (losses[0] - losses[1]) / (2 * h)
    found = float(result.gradient["log_factor"])
    assert result.certified
    assert abs(found - difference) <= float(result.error_bound) + 1e-5 * abs(difference)


def test_weakly_convex_beyond_the_data_term_is_refused(tmp_path: Path) -> None:
    R = import_ridge(wcrr(tmp_path / "model")[0], weight=5.0)
    problem = LowerLevelProblem(Identity((1, SIDE, SIDE)), R)
    with pytest.raises(lr.AssumptionError, match="weakly convex"):
        lr.solve(problem, random(1, 1, 1, SIDE, SIDE), 1e-4)


def test_model_file(tmp_path: Path) -> None:
    R, x = import_ridge(wcrr(tmp_path / "model")[0], weight=0.4).at(0.05), random(12, 1, 1, SIDE, SIDE)
    for regularizer in (R, Scaled(R, 0.7)):
        save_model(tmp_path / "model.safetensors", regularizer)
        again = load(tmp_path / "model.safetensors").regularizer
        torch.testing.assert_close(again.value(x), regularizer.value(x), rtol=0.0, atol=0.0)


# ---- the potential ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_proximal_map_solves_its_equation(dtype: torch.dtype) -> None:
    f: Potential = QuadraticSpline(random(1, 3, 1, 1).exp(), random(2, 3, 1, 1).exp(), random(3, 3, 8).abs()).to(dtype)
    v = (4.0 * random(4, 2, 3, 5, 6)).to(dtype)
    for step in (1e-2, 1.0, 50.0):
        t = f.prox(v, step)
        torch.testing.assert_close(t + step * f.grad(t), v, rtol=0.0, atol=100 * torch.finfo(dtype).eps * (1 + step))


def test_intervals_are_those_of_the_pieces() -> None:
    bends = torch.tensor([[0.5, -0.25, 1.0, 1.0]], dtype=torch.float64)  # knots -2 ... 2
    f = QuadraticSpline(0.5, 2.0, bends)
    t = torch.tensor([[-3.0, -0.75, 0.25, 0.0, 0.75, 2.0]], dtype=torch.float64)
    low, high = f.curvature_bounds(t, 0.2)
    torch.testing.assert_close(low, 4.0 * torch.tensor([[0.0, 0.5, 1.0, -0.25, 1.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(high, 4.0 * torch.tensor([[0.0, 0.5, 1.0, 1.0, 1.0, 0.0]], dtype=torch.float64))
    assert f.concavity == pytest.approx(1.0)
    for at, radius, smooth in ((0.5, 0.2, True), (0.5, 0.49, True), (0.5, 0.51, False), (0.0, 1e-9, False)):
        assert bool(f.kink_excluded(torch.tensor([[at]], dtype=torch.float64), radius)) is smooth
    for knot in (-1.0, -0.5, 0.0, 1.0):  # a knot itself belongs to both pieces
        assert not bool(f.kink_excluded(torch.tensor([[knot]], dtype=torch.float64), 0.0))


# ---- the chain -------------------------------------------------------------------------------------------------------


def chain(seed: int, sides: tuple[int, int]) -> ConvolutionChain:
    kernels = [random(seed, 3, 1, 3, 3), random(seed + 100, 2, 3, 5 if seed % 2 else 3, 3)]
    if seed % 3 == 0:
        kernels = [k.abs() for k in kernels]
    return ConvolutionChain(kernels, (1, *sides))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sides", [(5, 9), (33, 40), (20, 60)])
def test_norm_bound_of_a_chain(seed: int, sides: tuple[int, int]) -> None:
    W = chain(seed, sides)
    norm, bound = norm_of(W), W.norm_bound()
    assert W.norm_bound_kind == "rigorous"
    assert norm <= bound <= 1.3 * norm


def test_adjoint_of_a_chain_is_exact() -> None:
    W = chain(1, (7, 6))
    matrix = dense_matrix(W.forward, W.domain_shape)
    torch.testing.assert_close(dense_matrix(W.adjoint, W.range_shape), matrix.T, rtol=0.0, atol=1e-13)


# ---- files that are none ---------------------------------------------------------------------------------------------


def test_wrong_files_are_named(tmp_path: Path) -> None:
    folder, config, state = crr(tmp_path / "model")
    file = folder / "checkpoints" / "checkpoint_10.pth"

    def refused(match: str, **kwargs: Any) -> None:
        with pytest.raises(lr.CheckpointError, match=match):
            import_ridge(folder, **kwargs)

    for key in state:
        if key != "L":
            torch.save({"state_dict": {k: v.float() for k, v in state.items() if k != key}}, file)
            refused(key.replace("parametrizations.weight.original", "weight").replace(".", r"\."))
    torch.save({"state_dict": {**state, "activation.coefficients_vect": torch.zeros(5)}}, file)
    refused("has shape")
    torch.save({"state_dict": {**state, "lmbd": torch.tensor(math.nan)}}, file)
    refused("NaN")
    torch.save({"model": state}, file)
    refused("no state_dict")
    torch.save({"state_dict": state, "run": Path("x")}, file)
    refused("could execute code")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    refused("Git LFS pointer")
    file.write_bytes(b"PK\x03\x04 cut off")
    refused("cannot be read")
    torch.save({"state_dict": state}, file)
    activation = {**config["activation_params"], "knots_range": 10**400}
    for broken, match in (
        ({**config, "net_params": {}}, "net_params.channels"),
        ({**config, "activation_params": activation}, "activation_params.knots_range = .* expected a number"),
        ([], "expected an object"),
    ):
        (folder / "config.json").write_text(json.dumps(broken))
        refused(match)
    (folder / "config.json").unlink()
    refused("no config.json")
    folder, config, _ = wcrr(tmp_path / "wcrr")
    (folder / "config.json").write_text(json.dumps({**config, "noise_range": [0, 10**400]}))
    refused("noise_range = .*expected two numbers")
    for name in ("weight", "scale"):
        with pytest.raises(lr.ConfigError, match=rf"import_ridge\({name}=.*expected a positive finite number"):
            import_ridge(folder, **{name: 10**400})  # type: ignore[arg-type]
    with pytest.raises(lr.CheckpointError, match="does not exist"):
        import_ridge(tmp_path / "absent.pth")


def test_options_of_the_other_layout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(lr.ConfigError, match="noise_level"):
        import_ridge(crr(tmp_path / "crr")[0], noise_level=0.1)
    with pytest.raises(lr.ConfigError, match="scale"):
        import_ridge(wcrr(tmp_path / "wcrr")[0], scale=2.0)
    with pytest.raises(lr.ConfigError, match="weight"):
        import_ridge(tmp_path / "crr", weight=-1.0)
