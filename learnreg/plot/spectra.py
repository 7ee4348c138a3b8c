"""What a regularizer does to each frequency of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learnreg.errors import ConfigError, LearnregError
from learnreg.linear.arguments import check_type, whole_number
from learnreg.lower_level.regularizer import Regularizer
from learnreg.plot.regularizers import pictures_of
from learnreg.plot.style import COLOURS, new_figure, number_decades, styled

__all__ = ["Spectrum", "spectrum", "spectrum_of"]

_BINS = 24
_GREY_VALUE = 0.5
_NOTHING = 1e-12  # of the largest value: rounding


@dataclass(frozen=True)
class Spectrum:
    """Symbols on frequencies (*sides,) of large images, 0 in the middle: what an operator multiplies a wave by.

    gram: of W^T W, the squared response of all filters together, in the image's first channel; None of a regularizer
    that says its value alone. curvature: of ∇²R at a grey image; None where R has none. *Estimates*: from the response
    to one pixel in the middle of an image.
    """

    gram: Tensor | None
    curvature: Tensor | None


def spectrum_of(regularizer: Regularizer, size: int = 48) -> Spectrum:
    """From images with sides of so many pixels. An operator of one size alone keeps it. Of terms that a solution weighs
    those without weights."""
    chain = regularizer.chain()
    regularizer = regularizer if chain is None else chain.base
    shape = pictures_of(regularizer).image_shape
    if shape is None:
        shape = (regularizer.image_channels, *(size,) * regularizer.image_dimensions)
    p = next((p for p in (*regularizer.parameters(), *regularizer.buffers()) if p.is_floating_point()), torch.zeros(1))
    pixel = torch.zeros(1, *shape, dtype=torch.float64, device=p.device)
    pixel[(0, 0, *(n // 2 for n in shape[1:]))] = 1.0
    return Spectrum(_gram(regularizer, pixel), _curvature(regularizer, pixel))


@torch.no_grad()
def _gram(regularizer: Regularizer, pixel: Tensor) -> Tensor | None:
    if regularizer.pictures() is None:
        return None
    K = regularizer.saddle_terms(tuple(pixel.shape[1:])).operator
    joint = torch.zeros(1, *K.domain_shape, dtype=pixel.dtype, device=pixel.device)
    joint[:, : pixel.shape[1]] = pixel  # latent variables, behind the image, stay 0
    response: Tensor = K.adjoint(K(joint))
    return _symbol(response[0, 0])


def _curvature(regularizer: Regularizer, pixel: Tensor) -> Tensor | None:
    x = torch.full_like(pixel, _GREY_VALUE, requires_grad=True)
    try:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(regularizer.value(x).sum(), x, create_graph=True)
            (product,) = torch.autograd.grad((gradient * pixel).sum(), x)
    except (LearnregError, RuntimeError):
        return None
    found = _symbol(product[0, 0])
    return found if bool(torch.isfinite(found).all()) and bool((found > 0).any()) else None


def _symbol(response: Tensor) -> Tensor:
    symbol = torch.fft.fftn(torch.fft.ifftshift(response.detach().cpu().double())).real
    shifted: Tensor = torch.fft.fftshift(symbol)
    return shifted


@styled
def spectrum(regularizer: Regularizer, size: int = 48) -> Any:
    """What a regularizer does to waves of each frequency. On the left the squared response of all its filters together,
    the symbol of W^T W, over the frequencies of images; in the middle its mean over directions, beside that of the
    Hessian of R at a grey image, each over its largest value; on the right its values in order, the eigenvalues of
    W^T W on large images.

    Parameters
    ----------
    regularizer: of any family.
    size: of the images it is computed on, in pixels.

    Returns
    -------
    A matplotlib figure. Panels without data are left out: a regularizer that says its value alone has no W.

    Raises
    ------
    ConfigError: a regularizer that is nowhere smooth and says its value alone; matplotlib is missing.
    """
    check_type(regularizer, Regularizer, "plot.spectrum(regularizer)", "a Regularizer")
    found = spectrum_of(regularizer, whole_number(size, "plot.spectrum(size)", least=8))
    if found.gram is None and found.curvature is None:
        raise ConfigError(f"plot.spectrum: {type(regularizer).__name__} has neither an operator nor a curvature.")
    mapped = found.gram if found.gram is not None else found.curvature
    panels = (mapped is not None and mapped.dim() == 2) + 1 + (found.gram is not None)
    figure = new_figure(3.7 * panels, 3.2)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if mapped is not None and mapped.dim() == 2:
        name = "squared response of the filters" if found.gram is not None else "curvature of R at a grey image"
        _draw_map(figure, axes.pop(0), mapped, name)
    _draw_mean(axes.pop(0), {"W^T W": found.gram, "∇²R at a grey image": found.curvature})
    if found.gram is not None:
        _draw_eigenvalues(axes.pop(0), found.gram)
    return figure


def _draw_map(figure: Any, axes: Any, symbol: Tensor, title: str) -> None:
    drawn = axes.imshow(symbol.clamp_min(0.0).numpy(), cmap="viridis", extent=(-0.5, 0.5, 0.5, -0.5), vmin=0.0)
    axes.grid(False)
    axes.set_title(title)
    axes.set_xlabel("horizontal [cycles/pixel]")
    axes.set_ylabel("vertical [cycles/pixel]")
    axes.set_xticks([-0.5, 0.0, 0.5])
    axes.set_yticks([-0.5, 0.0, 0.5])
    figure.colorbar(drawn, ax=axes, shrink=0.9)


def _draw_mean(axes: Any, symbols: dict[str, Tensor | None]) -> None:
    for (name, symbol), colour, style in zip(symbols.items(), COLOURS, ("-", "--"), strict=False):
        if symbol is not None:
            frequencies, means = _radial(symbol)
            axes.plot(frequencies, means, style, color=colour, label=name.replace("W^T W", "$W^TW$"))
    axes.set_title("mean over directions, over its largest value")
    axes.set_xlabel("frequency [cycles/pixel]")
    axes.set_ylim(0.0, 1.05)
    axes.legend()


def _radial(symbol: Tensor) -> tuple[list[float], list[float]]:
    """Frequencies up to half a cycle per pixel, and the means of the symbol around them over the largest of these."""
    grids = torch.meshgrid(*[(torch.arange(n) - n // 2) / n for n in symbol.shape], indexing="ij")
    radius = torch.stack(grids).square().sum(0).sqrt()
    bins = (radius * 2 * _BINS).round().long().clamp_max(_BINS + 1).flatten()
    counts = torch.bincount(bins, minlength=_BINS + 2).double()
    sums = torch.zeros(_BINS + 2, dtype=torch.float64).index_add_(0, bins, symbol.flatten())
    known = [k for k in range(_BINS + 1) if counts[k] > 0]
    means = [float(sums[k] / counts[k]) for k in known]
    largest = max(*means, 1e-300)
    return [k / (2 * _BINS) for k in known], [m / largest for m in means]


def _draw_eigenvalues(axes: Any, symbol: Tensor) -> None:
    values = symbol.flatten().sort(descending=True).values
    kept = values[values > _NOTHING * values[0]]
    axes.semilogy([100.0 * (i + 1) / len(values) for i in range(len(kept))], kept.numpy(), color=COLOURS[0])
    axes.set_title("eigenvalues of $W^TW$, in order")
    axes.set_xlabel("share of them [%]")
    axes.set_xlim(0.0, 100.0)
    number_decades(axes)
