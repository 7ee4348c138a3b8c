"""What images a regularizer takes: how many channels, what couples them, and how many dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from torch import Tensor

from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.gradient import Gradient
from learnreg.convolutions.grouped_filter_bank import GroupedFilterBank
from learnreg.convolutions.padding import Boundary
from learnreg.errors import ConfigError, ShapeError
from learnreg.linear.arguments import check_one_of, is_whole, shown
from learnreg.lower_level.saddle_terms import Pictures
from learnreg.potentials.base import Potential
from learnreg.potentials.modulus import of_modulus

__all__ = ["COUPLINGS", "WIDTH", "WIDTHS", "Coupling", "ImageKind"]

Coupling = Literal["separate", "joint", "complex"]

COUPLINGS: tuple[str, ...] = get_args(Coupling)

_MOST_CHANNELS = 1024
WIDTHS, WIDTH = 10.0, 0.02
"""How far potentials are drawn: so many smoothings, or of this one where they have none."""
_SIDES = {1: "length", 2: "height, width", 3: "depth, height, width"}


@dataclass(frozen=True)
class ImageKind:
    """Images (channels, *sides), of one to three sides.

    coupling: "separate", the same model for every channel; "joint", filters across channels, or one modulus of all of
    them where groups of differences have one; "complex", two channels, real and imaginary parts, that the same real
    filters see and whose modulus the potential sees, so that turning the phase of an image changes nothing.

    A regularizer makes its operator here, and has all couplings and dimensions thereby.
    """

    channels: int = 1
    coupling: Coupling = "separate"
    dimensions: int = 2

    @classmethod
    def of(cls, who: str, channels: int, coupling: str, dimensions: int) -> Self:
        """ConfigError where they do not fit together."""
        check_one_of(coupling, COUPLINGS, f"{who}(coupling)")
        if not is_whole(channels, 1, _MOST_CHANNELS) or not is_whole(dimensions, 1, 3):
            raise ConfigError(
                f"{who}(channels={shown(channels)}, dimensions={shown(dimensions)}): expected integers, channels from "
                f"1 to {_MOST_CHANNELS:,}, dimensions 1 for signals, 2 for images or 3 for volumes."
            )
        if coupling == "complex" and channels != 2:
            raise ConfigError(
                f"{who}(coupling='complex', channels={channels}): expected channels=2, real and imaginary parts."
            )
        return cls(channels, coupling, dimensions)  # type: ignore[arg-type]

    def check(self, image_shape: tuple[int, ...], who: str, option: str = "channels") -> tuple[int, ...]:
        """The shape, or ShapeError unless it is that of such images; ``option``: what says their channels."""
        if len(image_shape) == self.dimensions + 1 and image_shape[0] == self.channels:
            return tuple(image_shape)
        found, sides = tuple(image_shape), len(image_shape) - 1
        options = f"{option}={found[0]}" if 1 <= sides <= 3 else f"{option}=..."
        options += f", dimensions={sides}" if 1 <= sides <= 3 and sides != self.dimensions else ""
        couplings = ", coupling='separate' or 'joint'" if sides >= 1 and found[0] > 1 else ""
        raise ShapeError(
            f"{who}: got images of shape {found}, expected ({self.channels}, {_SIDES[self.dimensions]}). Build it with "
            f"{options}{couplings}, or take AnalysisOperator(W, potential), which takes any shape "
            "(docs/regularizers.md)."
        )

    @property
    def default(self) -> bool:
        """Whether these are grey images."""
        return self == ImageKind()

    @property
    def turns(self) -> bool:
        """Whether potentials see the modulus of both channels."""
        return self.coupling == "complex"

    @property
    def across(self) -> bool:
        """Whether filters have an axis of channels."""
        return self.coupling == "joint" and self.channels > 1

    def kernel(self, size: int) -> tuple[int, ...]:
        """The shape of a filter of this side."""
        return (*((self.channels,) if self.across else ()), *(size,) * self.dimensions)

    def bank(self, filters: Tensor, shape: tuple[int, ...], boundary: Boundary, zero_mean: bool = False) -> FilterBank:
        """Of filters (n, *kernel); for complex images grouped, one filter in each group."""
        if self.turns:
            return GroupedFilterBank(filters[None], shape, boundary, zero_mean, over_channels=True)
        return FilterBank(filters, shape, boundary, zero_mean)

    def grouped_bank(
        self, filters: Tensor, shape: tuple[int, ...], boundary: Boundary, zero_mean: bool = False
    ) -> GroupedFilterBank:
        """Of groups of filters (members, groups, *kernel)."""
        return GroupedFilterBank(filters, shape, boundary, zero_mean, over_channels=self.turns)

    def seen_by(self, potential: Potential, who: str) -> Potential:
        """The potential of the responses of ``bank``: of complex images, that of their modulus. ConfigError where there
        is no such form."""
        return of_modulus(potential, who) if self.turns else potential

    def gradient(self, shape: tuple[int, ...]) -> Gradient:
        """Forward differences, those of all channels together unless they are separate."""
        return Gradient(shape, over_channels=self.coupling != "separate")

    def pictures(
        self,
        filters: Tensor,
        weights: Tensor,
        smoothing: Tensor | None,
        potential: Potential,
        reach: float | None = None,
    ) -> Pictures:
        """Of groups of filters (groups, members, *kernel), the channels of one side by side, and of their potentials
        along the first member, up to responses of ``reach``, by default ten times the smoothing that most groups have.
        Filters of volumes have no pictures.

        potential: its numbers are (groups, 1, 1), or the same for all groups.
        """
        drawn = self.drawn(filters, weights, smoothing)
        norms = filters.detach().double().flatten(2).norm(dim=2)[:, 0].cpu()
        if reach is None:
            widths = norms.new_full((1,), WIDTH) if smoothing is None else smoothing.detach().double().cpu() / norms
            reach = float(WIDTHS * widths.median())
        return drawn.along(potential, norms, reach)

    def drawn(self, filters: Tensor, weights: Tensor, smoothing: Tensor | None) -> Pictures:
        """The filters alone."""
        if self.dimensions == 3:
            return Pictures()
        sides = filters.shape[-self.dimensions :]
        flat = filters.reshape(len(filters), -1, *(1,) * (2 - self.dimensions), *sides)
        return Pictures(
            flat.detach().cpu(), weights.detach().cpu(), None if smoothing is None else smoothing.detach().cpu()
        )

    def config(self) -> dict[str, Any]:
        """For model files: nothing for grey images, as files of earlier versions have it."""
        if self.default:
            return {}
        return {"channels": self.channels, "coupling": self.coupling, "dimensions": self.dimensions}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """What ``config`` says, among other entries."""
        own = {name: config[name] for name in ("channels", "coupling", "dimensions") if name in config}
        return cls(**own)

    def described(self) -> str:
        """For ``extra_repr``, behind other options."""
        return "".join(f", {name}={value!r}" for name, value in self.config().items())
