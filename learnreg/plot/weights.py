"""Weights that a regularizer takes from a solution, or has learned, for each pixel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from learnreg.errors import ConfigError, ShapeError
from learnreg.linear.arguments import check_type, shown, whole_number
from learnreg.lower_level.regularizer import Regularizer
from learnreg.lower_level.saddle_terms import SaddleTerms
from learnreg.plot.style import new_figure, styled

__all__ = ["weights", "weights_at"]

_COLUMN = 2.4  # inches


@styled
def weights(regularizer: Regularizer, x: Tensor, most: int = 3) -> Any:
    """Where a regularizer smooths, and where it spares, beside the image. Of terms that a solution weighs, as those of
    ``Reweighted``, the mean over channels of the weights that follow from the image, and the channels whose weights
    vary most over it; 1 is the full weight of a term, 0 none. Of a regularizer that says its value alone its parameters
    that have a number for each pixel.

    Parameters
    ----------
    regularizer: of one of these kinds.
    x: the image, (channels, height, width) or (height, width); complex ones have two channels.
    most: channels, or parameters, that are drawn at most.

    Returns
    -------
    A matplotlib figure.

    Raises
    ------
    ConfigError: a regularizer without such weights, or of other than images; matplotlib is missing. ShapeError: no
    such image.
    """
    image, count = _image(regularizer, x), whole_number(most, "plot.weights(most)")
    if image.dim() != 3:
        raise ConfigError(f"plot.weights: an image of shape {tuple(image.shape)}; only flat ones are drawn.")
    of_solution = regularizer.chain() is not None
    maps = _weights(regularizer, image, count) if of_solution else _numbers_of_pixels(regularizer, image, count)
    tall, wide = image.shape[-2:]
    figure = new_figure(_COLUMN * (1 + len(maps)) + 0.7, _COLUMN * tall / wide + 0.4)
    panels = figure.subplots(1, 1 + len(maps), squeeze=False)[0]
    grey = image.square().sum(0).sqrt() if len(image) == 2 else image.mean(0)
    panels[0].imshow(grey.numpy(), cmap="gray", interpolation="none")
    panels[0].set_title("image")
    scale = {"vmin": 0.0, "vmax": 1.0} if of_solution else {}
    for axes, (title, values) in zip(panels[1:], maps.items(), strict=True):
        drawn = axes.imshow(values.numpy(), cmap="viridis", interpolation="none", **scale)
        axes.set_title(title)
        if axes is panels[-1] or not of_solution:
            figure.colorbar(drawn, cax=axes.inset_axes((1.05, 0.0, 0.06, 1.0)), label="weight" * of_solution)
    for axes in panels:
        axes.set_axis_off()
    return figure


def _weights(regularizer: Regularizer, image: Tensor, most: int) -> dict[str, Tensor]:
    """By their titles."""
    w = weights_at(regularizer, image)
    if len(w) == 1:
        return {"weights": w[0]}
    order = w.flatten(1).std(1).argsort(descending=True).tolist()
    return {f"mean of {len(w)} channels": w.mean(0), **{f"channel {c}": w[c] for c in order[:most]}}


def _numbers_of_pixels(regularizer: Regularizer, image: Tensor, most: int) -> dict[str, Tensor]:
    """The parameters of the image's size, by their names."""
    sides = image.shape[-2:]
    of_pixels = {
        name: p.detach().double().cpu().reshape(-1, *sides)
        for name, p in regularizer.named_parameters()
        if regularizer.pictures() is None and p.shape[-2:] == sides
    }
    maps = {f"{name} {k}" if len(p) > 1 else name: p[k] for name, p in of_pixels.items() for k in range(len(p))}
    if not maps:
        raise ConfigError(
            f"plot.weights: {type(regularizer).__name__} takes no weights from a solution, as Reweighted does, and has "
            "no parameter with a number for each pixel."
        )
    return dict(list(maps.items())[:most])


def weights_at(regularizer: Regularizer, x: Tensor) -> Tensor:
    """The weights that follow from an image, without batch axis, (channels, *places), float64; raises as ``weights``
    does."""
    image = _image(regularizer, x)
    chain = regularizer.chain()
    if chain is None:
        raise ConfigError(
            f"plot.weights: {type(regularizer).__name__} takes no weights from a solution, as Reweighted does."
        )
    with torch.no_grad():
        terms = chain.base.saddle_terms(tuple(image.shape))
        terms = SaddleTerms(terms.operator, terms.potential.to(torch.float64))
        batch = image[None].to(next((p.device for p in regularizer.parameters()), image.device))
        found = chain.weights.of(terms, batch, terms.operator(batch))
    return found[0].double().cpu()


def _image(regularizer: Regularizer, x: Tensor) -> Tensor:
    """In float64 on the CPU, with a channel axis."""
    check_type(regularizer, Regularizer, "plot.weights(regularizer)", "a Regularizer")
    image = torch.as_tensor(x).detach().double().cpu()
    sides = regularizer.image_dimensions
    image = image[None] if image.dim() == sides else image
    if image.dim() != sides + 1 or len(image) != regularizer.image_channels:
        raise ShapeError(
            f"plot.weights: got an image of shape {shown(tuple(x.shape))}, expected {regularizer.image_channels} "
            f"channels and {sides} sides."
        )
    return image
