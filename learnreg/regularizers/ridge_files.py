"""Checkpoints of published ridge regularizers, read as data.

Two layouts, each a ``config.json`` and a checkpoint with a "state_dict" of PyTorch or of safetensors:

CRR, https://github.com/axgoujon/convex_ridge_regularizers: f_c' is a non-decreasing linear spline of each channel,
R(x) = (lmbd/mu) sum f_c(mu W x).

WCRR, https://github.com/axgoujon/weakly_convex_ridge_regularizer: one f' = e^mu f_+' - rho f_-', odd, of the slopes of
f_+' and f_-' in [0, 1], R(x) = sum s_c^-2 f(s_c W x), s_c that of a noise level, and W divided by its norm on a grid.

Source: Goujon, Neumayer, Bohra, Ducotterd and Unser, IEEE Trans. Comput. Imaging 9 (2023); Goujon, Neumayer and Unser,
SIAM J. Imaging Sci. 17 (2024).
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from learnreg.convolutions.composition import compose
from learnreg.convolutions.padding import Boundary
from learnreg.errors import CheckpointError, ConfigError
from learnreg.linear.arguments import real_number, shown
from learnreg.linear.norms import circulant_bound
from learnreg.linear.paths import file_trouble, folder_trouble, is_lfs_pointer, read_text
from learnreg.regularizers.imported import GREY_LEVELS, ImportedRidge

__all__ = ["import_ridge"]

_LAYER = "conv_layer.conv_layers.{}.{}"
_RAW, _CENTRED = "weight", "parametrizations.weight.original"
_CRR_KEY, _WCRR_KEY = "activation.coefficients_vect", "activation_cvx.coefficients"
_LEAST_WEIGHT, _LEAST_SCALE = 1e-4, 1e-2
_NORM_GRID = 256
_HIGHEST_NOISE = 1e9
"""In grey levels; more is no noise, but a damaged file."""


def import_ridge(
    path: str | Path,
    *,
    weight: float | None = None,
    scale: float | None = None,
    noise_level: float | None = None,
    boundary: Boundary | Literal["chain"] = "chain",
) -> ImportedRidge:
    """The regularizer of a published CRR or WCRR checkpoint on this disk. Executes no code from the files.

    Parameters
    ----------
    path: the folder of a model, ``config.json`` beside ``checkpoints/checkpoint_<number>.pth``, of which the highest
        number is read; or the file of a checkpoint, ``.pth`` or ``.safetensors``, with ``config.json`` in its folder or
        the one above.
    weight: lmbd; by default as learned (CRR), or 1 (WCRR).
    scale: mu of CRR, by default as learned.
    noise_level: of WCRR, in units of images between 0 and 1; that of its validation by default. ``R.at(sigma)`` later.
    boundary: as in ``ImportedRidge``; "chain" is that of the published models.

    Potentials vanish at 0; published costs differ by a constant. Channels without a potential are left out.

    Raises
    ------
    CheckpointError: files that are missing, damaged, Git LFS pointers, or of another kind; keys that are missing, wrong
        shapes, NaN. ConfigError: weight, scale or noise_level out of range, or not of this layout.
    """
    for name, value in (("weight", weight), ("scale", scale)):
        if value is not None:
            real_number(value, f"import_ridge({name})", above=0.0)
    file = _find(Path(path))
    state, inner = _read_state(file)
    config = _read_config(file, inner)
    if _CRR_KEY in state:
        if noise_level is not None:
            raise ConfigError("import_ridge(noise_level=...): CRR models are of one noise level; leave it out.")
        return _convex(_Source(file, state, config), weight, scale, boundary)
    if _WCRR_KEY in state:
        if scale is not None:
            raise ConfigError("import_ridge(scale=...): scales of WCRR models follow from the noise level; give that.")
        return _weakly_convex(_Source(file, state, config), weight, noise_level, boundary)
    hint = " Models with ReLU instead of splines are not read." if "bias" in state else ""
    raise CheckpointError(
        f"{file}: neither {_CRR_KEY} (CRR) nor {_WCRR_KEY} (WCRR) is in the state_dict, which has "
        f"{', '.join(sorted(state)[:8]) or 'no tensors'}.{hint}"
    )


class _Source:
    """What was read, with errors that name the file and the key."""

    def __init__(self, file: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        self.file, self.state, self.config = file, state, config

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: {what}")

    def tensor(self, key: str, shape: tuple[int, ...]) -> Tensor:
        """In float64; -1 in the shape stands for any size."""
        if key not in self.state:
            raise self.fail(f"the state_dict lacks {key}; it has {', '.join(sorted(self.state))}.")
        found = self.state[key]
        fits = found.dim() == len(shape) and all(s in (-1, f) for s, f in zip(shape, found.shape, strict=True))
        if not fits or not found.is_floating_point():
            expected = f"({', '.join('any' if s < 0 else str(s) for s in shape)})"
            raise self.fail(f"{key} has shape {tuple(found.shape)} of {found.dtype}, expected {expected} of floats.")
        if not bool(torch.isfinite(found).all()):
            raise self.fail(f"{key} has NaN or infinite entries.")
        return found.double()

    def setting(self, *keys: str) -> Any:
        value: Any = self.config
        for key in keys:
            if not isinstance(value, Mapping) or key not in value:
                raise self.fail(f"its configuration lacks {'.'.join(keys)}.")
            value = value[key]
        return value

    def number(self, *keys: str) -> float:
        value = self.setting(*keys)
        try:
            return real_number(math.nan if isinstance(value, bool) else value, ".".join(keys))
        except ConfigError as error:
            found = f"{'.'.join(keys)} = {shown(value)} in its configuration, expected a number."
            raise self.fail(found) from error

    def knots(self, *keys: str) -> int:
        value = self.number(*keys)
        if value != int(value) or value < 5 or value % 2 == 0:
            raise self.fail(f"{'.'.join(keys)} = {value:g} in its configuration, expected an odd number from 5.")
        return int(value)

    def kernels(self, channels: Any, sizes: Any) -> list[Tensor]:
        """In use, means taken out of those that the layout centres."""
        whole = all(
            isinstance(numbers, list) and numbers and all(type(c) is int and c > 0 for c in numbers)
            for numbers in (channels, sizes)
        )
        if not whole or len(channels) != len(sizes) + 1 or channels[0] != 1:
            raise self.fail(
                f"channels {channels!r} with kernels of sides {sizes!r} in its configuration; expected lists of "
                "positive integers, the channels starting with 1 and one more than the sides."
            )
        found = []
        for i, ((before, after), k) in enumerate(zip(itertools.pairwise(channels), sizes, strict=True)):
            if k % 2 == 0:
                raise self.fail(f"kernels of the even side {k}; expected odd sides.")
            centred = _LAYER.format(i, _CENTRED) in self.state
            kernel = self.tensor(_LAYER.format(i, _CENTRED if centred else _RAW), (after, before, k, k))
            found.append(kernel - kernel.mean((1, 2, 3), keepdim=True) if centred else kernel)
        return found


def _convex(
    source: _Source, weight: float | None, scale: float | None, boundary: Boundary | Literal["chain"]
) -> ImportedRidge:
    channels, size = source.setting("net_params", "channels"), source.setting("net_params", "kernel_size")
    kernels = source.kernels(channels, [size] * (len(channels) - 1 if isinstance(channels, list) else 0))
    knots, reach = source.knots("activation_params", "n_knots"), source.number("activation_params", "knots_range")
    if not reach > 0:
        raise source.fail(
            f"activation_params.knots_range = {reach:g} in its configuration, expected a positive number."
        )
    n = int(kernels[-1].shape[0])
    values = source.tensor(_CRR_KEY, (n * knots,)).reshape(n, knots)
    bends = _flat_ends(values.diff(dim=1).clamp_min(0.0))
    kept = bends.abs().amax(1) > 0
    if not bool(kept.any()):
        raise source.fail(f"{_CRR_KEY} never rises: the regularizer vanishes.")
    if weight is None:
        weight = max(_LEAST_WEIGHT, float(source.tensor("lmbd", ())))
    if scale is None:
        scale = max(_LEAST_SCALE, float(source.tensor("mu", ())))
    return ImportedRidge(
        [*kernels[:-1], kernels[-1][kept]],
        bends[kept],
        2.0 * reach / (knots - 1),
        factor=weight * scale,
        log_scales=torch.full((1, 1), math.log(scale), dtype=torch.float64),
        boundary=boundary,
    )


def _weakly_convex(
    source: _Source, weight: float | None, noise_level: float | None, boundary: Boundary | Literal["chain"]
) -> ImportedRidge:
    kernels = source.kernels(
        source.setting("multi_convolution", "num_channels"), source.setting("multi_convolution", "size_kernels")
    )
    p = sum(kernel.shape[-1] // 2 for kernel in kernels)
    side = 2 * p + 2 * ((_NORM_GRID - 1) // 2) + 1
    square = circulant_bound(compose(kernels)[:, 0], (side, side))[0]
    if not square > 0:
        raise source.fail("all filters vanish.")
    knots = source.knots("spline_activation", "num_knots")
    low, high = source.number("spline_activation", "x_min"), source.number("spline_activation", "x_max")
    if not (high > 0 and low == -high):
        raise source.fail(f"spline_activation ranges from {low:g} to {high:g}, expected a range symmetric about 0.")
    distance = 2.0 * high / (knots - 1)
    rise, fall = (
        _odd_slopes(source.tensor(f"activation_{part}.coefficients", (1, knots)) / distance) for part in ("cvx", "ccv")
    )
    rho = source.number("rho_wcvx")
    if not rho >= 0:
        raise source.fail(f"rho_wcvx = {rho:g} in its configuration, expected a number >= 0.")
    bends = distance * (source.tensor("mu_", ()).exp() * rise - rho * fall)
    if not bool(bends.abs().max() > 0):
        raise source.fail("the activations vanish, and with them the regularizer.")
    limits = source.setting("noise_range")
    if not (isinstance(limits, list) and [type(n) in (int, float) for n in limits] == [True, True]) or not (
        0 <= limits[0] < limits[1] <= _HIGHEST_NOISE
    ):
        raise source.fail(
            f"noise_range = {shown(limits)} in its configuration, expected two numbers 0 <= low < high <= "
            f"{_HIGHEST_NOISE:g}."
        )
    if noise_level is None and "noise_val" in source.config:
        noise_level = source.number("noise_val") / GREY_LEVELS
    return ImportedRidge(
        [*kernels[:-1], kernels[-1] / math.sqrt(square)],
        bends,
        distance,
        factor=1.0 if weight is None else weight,
        log_scales=source.tensor("spline_scaling.coefficients", (int(kernels[-1].shape[0]), -1)),
        noise_range=(float(limits[0]), float(limits[1])),
        noise_level=noise_level,
        boundary=boundary,
    )


def _flat_ends(slopes: Tensor) -> Tensor:
    result = slopes.clone()
    result[:, 0] = result[:, -1] = 0.0
    return result


def _odd_slopes(values: Tensor) -> Tensor:
    """Slopes in [0, 1] of the odd part of the spline through these values, knots at a distance of 1."""
    slopes = _flat_ends(values.diff(dim=1).clamp(0.0, 1.0))
    return 0.5 * (slopes + slopes.flip(1))


def _find(path: Path) -> Path:
    if not os.path.isdir(path):
        return path
    if trouble := folder_trouble(path):
        raise CheckpointError(f"{path}: {trouble}")
    numbered = [(re.fullmatch(r"checkpoint_(\d+)\.(pth|safetensors)", f.name), f) for f in path.glob("checkpoints/*")]
    found = [(int(match[1]), file) for match, file in numbered if match]
    if not found:
        raise CheckpointError(f"{path}: holds no checkpoints/checkpoint_<number>.pth; give the file of a checkpoint.")
    return max(found)[1]


def _read_state(file: Path) -> tuple[dict[str, Tensor], object]:
    """The tensors of the state_dict, and a configuration beside them, if there is one."""
    if trouble := file_trouble(file):
        raise CheckpointError(f"{file}: {trouble}")
    try:
        with file.open("rb") as stream:
            pointer = is_lfs_pointer(stream.read(64))
        if pointer:
            raise CheckpointError(f"{file}: is a Git LFS pointer, not the checkpoint itself; run `git lfs pull`.")
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file), None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles of other protocols
            content = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # the unpickler raises many kinds when a file is damaged
        cause = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(
            f"{file}: cannot be read as a checkpoint of tensors alone ({cause}); it is "
            "damaged, or holds objects that are not loaded because they could execute code."
        ) from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{file}: has no state_dict of tensors; found {found or 'an empty dictionary'}.")
    return {str(key): value for key, value in state.items()}, content.get("config")


def _text_of(path: Path) -> str:
    return read_text(path, lambda trouble: CheckpointError(f"{path}: {trouble}"))


def _read_config(file: Path, inner: object) -> Mapping[str, Any]:
    for folder in (file.parent, file.parent.parent):
        path = folder / "config.json"
        if not os.path.lexists(path):
            continue
        try:
            config = json.loads(_text_of(path))
        except CheckpointError:
            raise
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: cannot be read as JSON ({error}).") from error
        if not isinstance(config, dict):
            raise CheckpointError(f"{path}: expected an object, got {type(config).__name__}.")
        return config
    if isinstance(inner, Mapping):
        return inner
    raise CheckpointError(
        f"{file}: there is no config.json in its folder or the one above, and none in the checkpoint."
    )
