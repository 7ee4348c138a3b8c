"""Ends a run that no longer improves on held-out samples, with the best parameters there were."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["EarlyStopping"]


class EarlyStopping:
    """Decides by the number of updates and by what is measured alone, never by the clock, so that runs of the same seed
    end alike.

    Parameters
    ----------
    patience: updates without a better measurement after which a run ends; None: it does not, and
        no parameters are kept.
    """

    def __init__(self, patience: int | None = None) -> None:
        self.patience = patience
        self.best: float | None = None
        self.best_update = self._seen = 0
        self._parameters: dict[str, Tensor] = {}

    def see(self, update: int, row: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]) -> None:
        """What was measured after an update: the loss of held-out samples, or else the PSNR on held-out images."""
        value = row["validation_loss"] if "validation_loss" in row else -row["psnr"] if "psnr" in row else math.nan
        if not math.isnan(value):
            self._seen = update
        if math.isfinite(value) and (self.best is None or value < self.best):
            self.best, self.best_update = float(value), update
            if self.patience is not None:
                self._parameters = {name: p.detach().clone() for name, p in parameters.items()}

    @property
    def is_over(self) -> bool:
        """Whether the patience was exhausted at the last measurement."""
        return self.patience is not None and self._seen - self.best_update >= self.patience

    @torch.no_grad()
    def restore_best(self, parameters: Mapping[str, nn.Parameter]) -> bool:
        """Set the parameters to the best ones; False where none were kept."""
        for name, value in self._parameters.items():
            parameters[name].copy_(value)
        return bool(self._parameters)

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "best_update": self.best_update,
            "seen": self._seen,
            "parameters": dict(self._parameters),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.best_update = state["best"], int(state["best_update"])
        self._seen = int(state["seen"])
        self._parameters = dict(state["parameters"])
