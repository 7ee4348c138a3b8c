"""Items of a data set that share batches with no others, such as those of one noise level: samples of one level are
solved together, and a batch of several levels in as many pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from learnreg.errors import DataError

__all__ = ["batch_groups", "shuffled_batches"]


def batch_groups(data: Any) -> list[list[int]] | None:
    """The indices of the items of each group that has any, as ``data.batch_groups()`` says; None where the data do not
    ask for groups.

    Raises
    ------
    DataError: groups that do not hold each item once.
    """
    method = getattr(data, "batch_groups", None)
    found = method() if callable(method) else None
    if found is None:
        return None
    groups = [[int(index) for index in group] for group in found if len(group)]
    if sorted(index for group in groups for index in group) != list(range(len(data))):
        raise DataError("the dataset: its batch_groups() do not hold each of its items once.")
    return groups


def shuffled_batches(groups: Sequence[Sequence[int]], size: int, generator: torch.Generator) -> list[list[int]]:
    """One pass over the data: each group is permuted and divided into batches of ``size``, of which the last may be
    smaller, and these are permuted."""
    batches = [
        [group[k] for k in piece.tolist()]
        for group in groups
        for piece in torch.split(torch.randperm(len(group), generator=generator), size)
    ]
    return [batches[k] for k in torch.randperm(len(batches), generator=generator).tolist()]
