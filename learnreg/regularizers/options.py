"""What a regularizer may be told at its start: options of the command line, each written once."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from learnreg.convolutions.padding import BOUNDARIES
from learnreg.errors import ConfigError
from learnreg.potentials import POTENTIALS

if TYPE_CHECKING:
    from learnreg.lower_level.regularizer import Regularizer

__all__ = ["RegularizerOptions", "again", "option", "options_of"]

_MOST_NUMBERS = 10**7


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

    filters: int = option(24, "number of filters", at_least=1, at_most=1024)
    group_size: int = option(
        0,
        "filters in each group, one potential for the length of their responses; 0: 2 of multivariate, else 1",
        at_least=0,
        at_most=1024,
    )
    norm: str = option(
        "euclidean", "of the responses of a group of multivariate experts", choices=("euclidean", "maximum")
    )
    positions: int = option(4, "positions in a pixel where gradients are sampled", at_least=1, at_most=64)
    boundary: str = option("reflect", "what lies beyond the border of images", choices=BOUNDARIES)
    potential: str = option(
        "pseudo-huber",
        "potential of the filter responses; absolute-value takes method=closed-form",
        choices=tuple(POTENTIALS),
    )
    features: int = option(
        32, "features in each layer of the network, or in that of free weights", at_least=1, at_most=1024
    )
    layers: int = option(2, "layers of the network", at_least=1, at_most=64)
    form: str = option("smooth", "of the network", choices=("smooth", "lifted"))
    smoothing: float = option(5e-3, "initial smoothing of the potential, in image units", above=0.0, at_most=1e3)
    minimum_smoothing: float = option(
        2e-3, "the smoothing stays above this, by parametrisation", at_least=0.0, at_most=1e3
    )
    weight: float = option(0.3, "sum of the initial weights", above=0.0, at_most=1e6)
    convexity: str = option("convex", "of the potentials", choices=("convex", "convex-nonconvex"))
    nonconvexity: float = option(
        0.9, "modulus that weakly convex ones take from data term and ridge at most", above=0.0, at_most=1e6
    )

    convolutions: str = option("4,8,32", "channels after each small convolution; the last are the filters")
    knots: int = option(21, "of each learned potential, odd", at_least=5, at_most=1025)

    depth: float = option(
        0.5, "initial depth of the concave parts of weakly convex potentials, of the largest", above=0.0, at_most=0.999
    )

    reweighting: str = option(
        "majorising", "how weights follow from a solution", choices=("majorising", "free", "responses")
    )
    solves: int = option(2, "solves with weights, after the one without", at_least=1, at_most=100)
    carry_errors: bool = option(
        False, "whether a reweighted regularizer bounds the error of the whole chain, not given its last weights alone"
    )
    window: int = option(1, "side of the windows that smooth majorising weights, odd", at_least=1, at_most=15)
    weights_side: int = option(5, "side of the kernels of networks that weights come from, odd", at_least=1, at_most=15)

    @property
    def filter_side(self) -> int:
        """Side of the filters in pixels."""
        raise NotImplementedError

    @property
    def image_kind(self) -> dict[str, Any]:
        """Channels and coupling of the images, as keywords of a regularizer: none for grey ones."""
        return {}

    @property
    def noise_conditioned(self) -> bool:
        """Whether weights and smoothings follow the noise level; an option of tasks with several levels."""
        return False

    @property
    def variation_weight(self) -> float:
        """Weight of a total variation that smooths as much as filters of these initial weights: measured, a third."""
        return self.weight / 3.0

    @property
    def convolution_channels(self) -> tuple[int, ...]:
        """``convolutions`` as numbers.

        Raises
        ------
        ConfigError: something else than integers with commas between them.
        """
        try:
            return tuple(int(part) for part in self.convolutions.split(","))
        except ValueError:
            raise ConfigError(
                f"convolutions={self.convolutions!r}: expected integers with commas between them, such as 4,8,32."
            ) from None

    def check_sizes(self) -> None:
        """Raise ConfigError for more numbers than anybody would learn, before memory for them is asked for."""
        pixels = self.filter_side**2
        numbers = max(self.filters * pixels, self.layers * self.features * (self.features + pixels))
        if numbers > _MOST_NUMBERS:
            raise ConfigError(
                f"filters={self.filters}, features={self.features}, layers={self.layers}, filters of side "
                f"{self.filter_side}: {numbers:.1e} numbers to learn, at most {_MOST_NUMBERS:.0e} are. Choose fewer."
            )


def options_of(cls: type[Regularizer], kind: type[RegularizerOptions]) -> frozenset[str]:
    """The options that a regularizer takes, of a class of options: what its ``from_options`` reads of their
    defaults."""
    reading = _Reading(kind)
    with contextlib.suppress(ConfigError):  # where it does not take the images of these options
        cls.from_options(reading, torch.Generator().manual_seed(0))
    return frozenset(reading.names)


class _Reading:
    """The defaults of a class of options, which remembers what was asked for."""

    def __init__(self, kind: type[RegularizerOptions]) -> None:
        self._kind = kind
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        found = inspect.getattr_static(self._kind, name)
        if isinstance(found, property):
            assert found.fget is not None
            return found.fget(self)
        self.names.add(name)
        return found
