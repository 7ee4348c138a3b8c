"""What a regularizer may be told at its start: options of the command line, each written once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from learnreg.convolutions.padding import BOUNDARIES
from learnreg.errors import ConfigError
from learnreg.potentials import POTENTIALS

__all__ = ["RegularizerOptions", "again", "option"]


def option(
    default: Any,
    help_text: str,
    *,
    choices: Sequence[str] = (),
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    resumable: bool = False,
    numeric_text: bool = False,
    main: bool = False,
) -> Any:
    """A dataclass field with its default, its help and its range: above < value, at_least <= value <= at_most.

    resumable: whether a resumed run may have another value. numeric_text: a text that may be given as a number. main:
    shown by ``--help``; the others by ``--help-all``.
    """
    metadata = {
        "help": help_text,
        "choices": tuple(choices),
        "above": above,
        "at_least": at_least,
        "at_most": at_most,
        "resumable": resumable,
        "numeric_text": numeric_text,
        "main": main,
    }
    return dataclasses.field(default=default, metadata=metadata)


def again(kind: type, name: str, default: Any) -> Any:
    """The option of that name of ``kind`` with another default."""
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    return dataclasses.field(default=default, metadata=field.metadata)


@dataclass(frozen=True)
class RegularizerOptions:
    """What ``Regularizer.from_options`` gets; each regularizer takes what concerns it."""

    filters: int = option(24, "number of filters of a field of experts, or of multivariate experts", at_least=1)
    group_size: int = option(2, "filters in each group of multivariate experts", at_least=1)
    positions: int = option(4, "positions in a pixel where learned total variation samples gradients", at_least=1)
    boundary: str = option(
        "reflect", "beyond the border, for a field of experts and multivariate experts", choices=BOUNDARIES
    )
    potential: str = option("pseudo-huber", "potential of a field of experts", choices=tuple(POTENTIALS))
    features: int = option(32, "features in each layer of an input-convex network", at_least=1)
    layers: int = option(2, "layers of an input-convex network", at_least=1)
    form: str = option("smooth", "of an input-convex network", choices=("smooth", "lifted"))
    smoothing: float = option(5e-3, "initial smoothing of the potential, in image units", above=0.0)
    minimum_smoothing: float = option(2e-3, "the smoothing stays above this, by parametrisation", at_least=0.0)
    weight: float = option(0.3, "sum of the initial weights", above=0.0)
    convexity: str = option(
        "convex", "potentials of a ridge regularizer, convex or weakly convex", choices=("convex", "convex-nonconvex")
    )
    nonconvexity: float = option(
        0.9, "modulus that weakly convex ones take from data term and ridge at most", above=0.0
    )

    def __post_init__(self) -> None:
        if self.smoothing <= self.minimum_smoothing:
            raise ConfigError(
                f"smoothing={self.smoothing:g}: expected a number > minimum_smoothing={self.minimum_smoothing:g}; "
                "lower minimum_smoothing too."
            )

    @property
    def filter_side(self) -> int:
        """Side of the filters in pixels."""
        raise NotImplementedError

    @property
    def variation_weight(self) -> float:
        """Weight of a total variation that smooths as much as filters of these initial weights: measured, a third."""
        return self.weight / 3.0
