"""Which lines of k-space are measured."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.linear.arguments import real_number, whole_number

__all__ = ["cartesian_mask"]


def cartesian_mask(
    lines: int,
    acceleration: float = 4.0,
    center_fraction: float = 0.08,
    kind: Literal["random", "equispaced"] = "random",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Lines of Cartesian k-space: the middle ones, all of them, and of the others as many as ``acceleration`` leaves.

    Parameters
    ----------
    lines: number of lines, the last side of the image.
    acceleration: lines over measured lines, at least 1.
    center_fraction: share of the lines in the middle that are all measured, in [0, 1].
    kind: the other lines are drawn, or spread evenly with a drawn first one.
    generator: None: torch's global one.

    Returns
    -------
    Boolean (lines,), frequency zero at ``lines // 2``; max(middle, round(lines / acceleration)) of them, at least 1.

    Source: Zbontar et al., fastMRI: an open dataset and benchmarks for accelerated MRI (2018), section 4.2.

    Raises
    ------
    ConfigError: a value out of its range.
    """
    lines = whole_number(lines, "cartesian_mask(lines)")
    if real_number(acceleration, "cartesian_mask(acceleration)") < 1.0:
        raise ConfigError(f"cartesian_mask(acceleration={acceleration!r}): expected at least 1, all lines.")
    if real_number(center_fraction, "cartesian_mask(center_fraction)", least=0.0) > 1.0:
        raise ConfigError(f"cartesian_mask(center_fraction={center_fraction!r}): expected a share in [0, 1].")
    middle = round(lines * center_fraction)
    mask = torch.zeros(lines, dtype=torch.bool)
    first = (lines - middle + 1) // 2  # so that lines // 2 is among them
    mask[first : first + middle] = True
    others = torch.nonzero(~mask).flatten()
    count = min(len(others), max(round(lines / acceleration) - middle, 0 if middle else 1))
    if kind == "random":
        mask[others[torch.randperm(len(others), generator=generator)[:count]]] = True
    elif kind == "equispaced":
        offset = float(torch.rand((), generator=generator))
        mask[others[((torch.arange(count) + offset) * len(others) / max(count, 1)).long()]] = True
    else:
        raise ConfigError(f"cartesian_mask(kind={kind!r}): expected 'random' or 'equispaced'.")
    return mask
