"""What a hunt for false bounds counts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

__all__ = ["Summary"]


@dataclass
class Summary:
    """Counts over all problems; effectivity is bound over true error where the latter exceeds the truth's own error.
    ``indefinite``: problems whose Hessian has no lower bound above 0 that holds everywhere. ``reached``: smooth
    problems (no Huber kinks, no constraint) certified to a tolerance, by the tolerance."""

    problems: int = 0
    unusable_truth: int = 0
    comparisons: int = 0
    certified: int = 0
    smooth: int = 0
    indefinite: int = 0
    reached: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    effectivities: dict[str, list[float]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def compare(self, what: str, error: float, bound: float, slack: float, label: str) -> None:
        self.comparisons += 1
        if error > bound + slack or math.isnan(error) or math.isnan(bound):
            self.violations.append(f"{what}: error {error:.6g} > bound {bound:.6g} + slack {slack:.2g} [{label}]")
        if error > 3.0 * slack and math.isfinite(bound) and error > 0:
            self.effectivities.setdefault(what, []).append(bound / error)

    def report(self) -> dict[str, object]:
        worst = {}
        for what, values in sorted(self.effectivities.items()):
            ordered = torch.tensor(sorted(values), dtype=torch.float64)
            worst[what] = {
                "smallest": float(ordered[0]),
                "median": float(ordered.median()),
                "largest": float(ordered[-1]),
            }
        return {
            "problems": self.problems,
            "comparisons": self.comparisons,
            "violations": len(self.violations),
            "certified_share": self.certified / max(self.problems, 1),
            "smooth": self.smooth,
            "indefinite": self.indefinite,
            "certified_share_of_smooth": {key: count / max(self.smooth, 1) for key, count in self.reached.items()},
            "unusable_truth": self.unusable_truth,
            "effectivity": worst,
            "seconds": round(self.seconds, 1),
            "examples": self.violations[:10],
        }
