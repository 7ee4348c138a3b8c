"""How the responses of a filter bank lie in memory when an image has several channels, and the patches that made them.

Responses always have two axes behind those of the filters, so that numbers (n, 1, 1) of filters broadcast: planes of a
volume lie below each other, and so do channels that the same filters see one at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from learnreg.convolutions.padding import Boundary, pad

__all__ = ["ChannelLayout", "PatchSource"]


@dataclass(frozen=True)
class ChannelLayout:
    """inputs: channels that a filter sees. copies: how often the filters are applied, each time to so many channels.
    filters: their number. as_members: the copies are members of the groups of responses, (copies · members, ...), that
    a grouped potential takes lengths of, and lie below each other otherwise."""

    inputs: int
    copies: int
    filters: int
    as_members: bool = False

    def images(self, x: Tensor) -> Tensor:
        """(batch, channels, *sides) as images that one filter sees: (batch · copies, inputs, *sides)."""
        return x if self.copies == 1 else x.reshape(len(x) * self.copies, self.inputs, *x.shape[2:])

    def joined(self, images: Tensor) -> Tensor:
        """The transpose of ``images``."""
        if self.copies == 1:
            return images
        return images.reshape(len(images) // self.copies, self.copies * self.inputs, *images.shape[2:])

    def arranged(self, responses: Tensor, range_shape: tuple[int, ...]) -> Tensor:
        """Responses (batch · copies, filters, *sides) as they lie, (batch, *range_shape)."""
        batch = len(responses) // self.copies
        if self.copies > 1 and not self.as_members:
            responses = responses.reshape(batch, self.copies, *responses.shape[1:]).transpose(1, 2)
        return responses.reshape(batch, *range_shape)

    def taken_apart(self, responses: Tensor, sides: tuple[int, ...]) -> Tensor:
        """The transpose of ``arranged``."""
        if self.copies == 1:
            return responses.reshape(len(responses), self.filters, *sides)
        return self.apart(responses).reshape(len(responses) * self.copies, self.filters, *sides)

    def apart(self, responses: Tensor) -> Tensor:
        """Responses as they lie, (batch, ...), by copies and filters: (batch, copies, filters, pixels)."""
        pixels = responses.shape[1:].numel() // (self.copies * self.filters)
        if self.as_members:
            return responses.reshape(len(responses), self.copies, self.filters, pixels)
        return responses.reshape(len(responses), self.filters, self.copies, pixels).transpose(1, 2)

    def places(self, bounds: Tensor) -> Tensor:
        """Numbers that broadcast against responses, as (batch, filters or groups, copies · pixels): of each filter, or
        of each group of them that one number serves."""
        flat: Tensor = bounds.flatten(1, -3).flatten(2)
        if not self.as_members or self.copies == 1 or flat.shape[2] == 1:
            return flat
        if self.grouped(bounds):
            return flat.repeat(1, 1, self.copies)
        return flat.reshape(len(flat), self.copies, -1, flat.shape[2]).transpose(1, 2).flatten(2)

    def grouped(self, bounds: Tensor) -> bool:
        """Whether these numbers belong to groups that all copies are members of."""
        return self.as_members and bounds.shape[1] == 1


@dataclass(frozen=True)
class PatchSource:
    """Where patches of images come from: the sides of the filters and of the responses to one image, the boundary of
    the bank, its layout; zero_mean: the mean of each channel of a patch is taken out, as that of filters is."""

    filter_shape: tuple[int, ...]
    response_sides: tuple[int, ...]
    boundary: Boundary
    layout: ChannelLayout
    zero_mean: bool

    @property
    def coefficients(self) -> int:
        """Of a filter in one channel."""
        return math.prod(self.filter_shape)

    def padded(self, u: Tensor) -> Tensor:
        """Extended images (batch · copies, inputs, *sides)."""
        return pad(self.layout.images(u), self.filter_shape, self.boundary)

    def patches(self, u: Tensor) -> Tensor:
        """U_u: (batch, inputs · coefficients, copies · pixels)."""
        windows, inputs, copies = self.padded(u), self.layout.inputs, self.layout.copies
        for axis, side in enumerate(self.filter_shape):
            windows = windows.unfold(axis + 2, side, 1)  # (batch · copies, inputs, *rest, *filter sides)
        windows = windows.flatten(-len(self.filter_shape)).flatten(2, -2)
        if self.zero_mean:
            windows = windows - windows.mean(-1, keepdim=True)
        columns = windows.transpose(2, 3).reshape(-1, copies, inputs * self.coefficients, windows.shape[2])
        return columns.transpose(1, 2).flatten(2).contiguous()
