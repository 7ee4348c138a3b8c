"""Weights that a regularizer takes from a solution."""

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
    """Where a reweighted regularizer smooths, and where it spares: the image, the mean over channels of the weights
    that follow from it, and the channels whose weights vary most over the image. 1 is the full weight of a term, 0
    none.

    Parameters
    ----------
    regularizer: with weights from a solution, as ``Reweighted``.
    x: the image, (channels, height, width) or (height, width); complex ones have two channels.
    most: channels that are drawn at most.

    Returns
    -------
    A matplotlib figure.

    Raises
    ------
    ConfigError: a regularizer without such weights, or of other than images; matplotlib is missing. ShapeError: no
    such image.
    """
    image, w = _image(regularizer, x), weights_at(regularizer, x)
    if w.dim() != 3:
        raise ConfigError(f"plot.weights: weights of shape {tuple(w.shape)}; only those of images are drawn.")
    count = min(whole_number(most, "plot.weights(most)"), len(w)) if len(w) > 1 else 0
    maps = {"weights" if len(w) == 1 else f"mean of {len(w)} channels": w.mean(0)}
    maps |= {f"channel {c}": w[c] for c in w.flatten(1).std(1).argsort(descending=True).tolist()[:count]}
    tall, wide = image.shape[-2:]
    figure = new_figure(_COLUMN * (1 + len(maps)) + 0.7, _COLUMN * tall / wide + 0.4)
    panels = figure.subplots(1, 1 + len(maps), squeeze=False)[0]
    grey = image.square().sum(0).sqrt() if len(image) == 2 else image.mean(0)
    panels[0].imshow(grey.numpy(), cmap="gray", interpolation="none")
    panels[0].set_title("image")
    for axes, (title, values) in zip(panels[1:], maps.items(), strict=True):
        drawn = axes.imshow(values.numpy(), cmap="viridis", vmin=0.0, vmax=1.0, interpolation="none")
        axes.set_title(title)
    for axes in panels:
        axes.set_axis_off()
    figure.colorbar(drawn, cax=panels[-1].inset_axes((1.05, 0.0, 0.06, 1.0)), label="weight")
    return figure


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
