"""What a training run returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from learnreg.regularizers import Regularizer
from learnreg.result import Brief

__all__ = ["EndedBy", "TrainResult"]

EndedBy = Literal["updates", "minutes", "patience"]


@dataclass(frozen=True, repr=False)
class TrainResult(Brief):
    """regularizer: the learned one (the problem's own, changed in place). model_path: None without a run folder. rows:
    what was logged, one dict per update. updates, seconds, operator_applications: totals, earlier runs included.
    ended_by: what ended the run. asked: how many updates were asked for; None where the minutes alone were to end it.
    best_update: after which the parameters were those that are returned, where early stopping chose them.

    Examples
    --------
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), lr.regularizers.TotalVariation(0.1))
    >>> pairs = [(torch.rand(1, 8, 8), torch.full((1, 8, 8), 0.5))]
    >>> result = lr.train(problem, pairs, updates=1, batch_size=1, tune=False, progress=False)
    >>> result.updates, result.model_path
    (1, None)
    """

    regularizer: Regularizer
    model_path: Path | None
    rows: list[dict[str, Any]]
    updates: int
    seconds: float
    operator_applications: int
    ended_by: EndedBy = "updates"
    asked: int | None = None
    best_update: int | None = None

    @property
    def was_cut(self) -> bool:
        """Whether the minutes were over before the updates that were asked for."""
        return self.ended_by == "minutes" and self.asked is not None and self.updates < self.asked
